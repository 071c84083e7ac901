"""A ModelConfig from a Hugging Face folder; reads the old and new spellings of config.json.

Settings that the decoder does not support are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.config import IndexerConfig, MLAConfig, ModelConfig, MoEConfig
from engine.models.config_keys import LARGEST, Keys, is_positive, read_json
from engine.models.int8_scheme import Int8Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "DeepseekForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "DeepseekV32ForCausalLM",
)
DTYPES = ("bfloat16", "float16", "float32")  # those of engine.device
_ROPE_FLOATS = {
    "rope_theta",
    "factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
}


def read_folder(folder: Path) -> ModelConfig:
    """Read config.json, and the end-of-sequence tokens in generation_config.json if there is one."""
    generation = folder / "generation_config.json"
    return parse(read_json(folder / "config.json"), read_json(generation) if generation.exists() else {})


def parse(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Translate the dictionaries of config.json and generation_config.json.

    Raises:
        ModelError: naming the key and what is valid, where possible.
    """
    keys = Keys(raw, "config.json")
    try:
        _refuse_unsupported(raw)
        return ModelConfig(
            **_hf_shape(keys),
            **_hf_rope(keys),
            mla=_hf_mla(keys),
            indexer=_hf_indexer(keys),
            moe=_hf_moe(keys),
            num_nextn_predict_layers=keys.integer("num_nextn_predict_layers", int(_is_v3(keys)), at_least=0),
            int8=_hf_quantization(raw),
            weight_block_size=_hf_block_size(raw),
            eos_token_ids=_eos_token_ids(raw, generation),
            dtype=_dtype(keys),
        )
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"config.json has a value of a wrong kind: {error}") from None


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    architectures = raw.get("architectures") or ["(none named)"]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ModelError(f"architectures in config.json is {architectures!r}; expected a list with a name")
    architecture = architectures[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"architecture {architecture} is not supported yet; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise ModelError(f"hidden_act is {activation!r}; only 'silu' is computed here")


def _hf_quantization(raw: Mapping[str, Any]) -> Int8Scheme | None:
    """The checkpoint's int8 scheme; None if weights are floats, or FP8, which is dequantized at load."""
    quantization = raw.get("quantization_config")
    if not quantization:
        return None
    if not isinstance(quantization, dict):
        raise ModelError(f"quantization_config in config.json is {quantization!r}; expected an object")
    method = quantization.get("quant_method")
    if method == "compressed-tensors":
        return Int8Scheme.from_config(quantization)
    if method != "fp8":
        raise ModelError(
            f"the checkpoint is quantised by {method!r}; supported are DeepSeek's block-wise 'fp8' and int8 weights "
            "of 'compressed-tensors'"
        )
    return None


def _hf_shape(keys: Keys) -> dict[str, Any]:
    sizes = keys.integers("num_attention_heads", "hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers")
    num_heads = sizes["num_attention_heads"]
    return {
        **sizes,
        "architecture": keys.values["architectures"][0],
        "num_key_value_heads": keys.integer("num_key_value_heads", num_heads),
        "head_dim": keys.integer("head_dim", sizes["hidden_size"] // num_heads),
        "rms_norm_eps": keys.number("rms_norm_eps", 1e-6),
        "max_position_embeddings": keys.integer("max_position_embeddings", 2048),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", False),
        "attention_bias": keys.flag("attention_bias", False),
        "mlp_bias": keys.flag("mlp_bias", False),
    }


def _hf_rope(keys: Keys) -> dict[str, Any]:
    """RoPE's settings. Transformers 5 writes rope_parameters; earlier versions wrote rope_theta and rope_scaling."""
    name = "rope_parameters" if keys.get("rope_parameters", None) else "rope_scaling"
    rope = keys.get(name, {})
    if not isinstance(rope, dict):
        keys.refuse(name, rope, "an object")
    rope = dict(rope)
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    for key in _ROPE_FLOATS & rope.keys():
        if rope[key] is not None and not is_positive(rope[key]):
            keys.refuse(f"{name}.{key}", rope[key], "a positive number")
    if (rope.get("partial_rotary_factor") or keys.get("partial_rotary_factor", 1)) != 1:
        keys.refuse("partial_rotary_factor", keys.get("partial_rotary_factor", 1), "1: all dimensions rotate")
    theta = rope.pop("rope_theta", None) or keys.number("rope_theta", 10000.0)
    return {"rope_theta": float(theta), "rope_scaling": {} if rope.get("rope_type", "default") == "default" else rope}


def _hf_block_size(raw: Mapping[str, Any]) -> tuple[int, int]:
    size = (raw.get("quantization_config") or {}).get("weight_block_size") or (128, 128)
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(isinstance(length, int) and length > 0 for length in size)
    ):
        raise ModelError(f"weight_block_size in config.json is {size!r}; expected two positive whole numbers")
    return size[0], size[1]


def _hf_mla(keys: Keys) -> MLAConfig | None:
    if not keys.get("kv_lora_rank", 0):
        return None
    return MLAConfig(
        q_lora_rank=keys.integer("q_lora_rank", 0, at_least=0) or None,
        **keys.integers("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        rope_interleave=keys.flag("rope_interleave", True),
    )


def _hf_indexer(keys: Keys) -> IndexerConfig | None:
    if not keys.get("index_topk", 0):
        return None
    return IndexerConfig(**keys.integers("index_n_heads", "index_head_dim", "index_topk"))


def _is_v3(keys: Keys) -> bool:
    return keys.values["architectures"][0] in ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM")


def _hf_moe(keys: Keys) -> MoEConfig | None:
    if not keys.get("n_routed_experts", 0):
        return None
    is_v3 = _is_v3(keys)  # a V3 config that transformers wrote lacks topk_method and scoring_func
    return MoEConfig(
        **keys.integers("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"),
        n_shared_experts=keys.integer("n_shared_experts", 0, at_least=0),
        first_k_dense_replace=keys.integer("first_k_dense_replace", 0, at_least=0),
        moe_layer_freq=keys.integer("moe_layer_freq", 1),
        scoring_func=keys.choice("scoring_func", "sigmoid" if is_v3 else "softmax", ("softmax", "sigmoid")),
        topk_method=keys.choice(
            "topk_method",
            "noaux_tc" if is_v3 else "greedy",
            ("greedy", "group_limited_greedy", "noaux_tc"),
        ),
        n_group=keys.integer("n_group", 1),
        topk_group=keys.integer("topk_group", 1),
        norm_topk_prob=keys.flag("norm_topk_prob", is_v3),
        routed_scaling_factor=keys.number("routed_scaling_factor", 1.0),
    )


def _dtype(keys: Keys) -> str | None:
    """The dtype of the weights, which transformers 5 calls dtype and earlier versions torch_dtype."""
    name = next((name for name in ("dtype", "torch_dtype") if keys.get(name, None) is not None), None)
    return None if name is None else keys.choice(name, "", DTYPES)


def _eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id <= LARGEST:
                raise ModelError(f"eos_token_id is {value!r}; expected a token id or a list of them")
            ids.append(token_id)
    return tuple(dict.fromkeys(ids))

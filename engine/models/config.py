"""A model's shape, by the names of its config.json (DeepSeek's names). Imports no torch.

Owns the translation from what checkpoints say (config.json in old and new spellings, GGUF metadata) to one
ModelConfig, and the refusal of what the decoders here do not compute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError

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


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        q_lora_rank: width of the compressed query; None where queries are not compressed.
        kv_lora_rank: width of the latent that keys and values are made from, and that is cached.
        qk_nope_head_dim: a head's query and key dimensions without position.
        qk_rope_head_dim: those with rotary position; the key's are shared by all heads, and cached.
        v_head_dim: a head's value dimensions.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, kw_only=True)
class IndexerConfig:
    """The lightning indexer of DeepSeek-V3.2: which `index_topk` positions each query attends to."""

    index_n_heads: int
    index_head_dim: int
    index_topk: int


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts (DeepSeekMoE, arXiv 2401.06066).

    Attributes:
        first_k_dense_replace: the first layers, which have a dense MLP instead.
        moe_layer_freq: of the others, every how many-th has experts.
        scoring_func: "softmax" or "sigmoid".
        topk_method: "greedy", "group_limited_greedy" (a group counts by its best expert) or "noaux_tc" (by its best
        two, with a
            correction bias that chooses but does not weigh).
    """

    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    moe_intermediate_size: int
    first_k_dense_replace: int
    moe_layer_freq: int = 1
    scoring_func: str = "softmax"
    topk_method: str = "greedy"
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a decoder is built from.

    Attributes:
        head_dim: of plain attention; not used with MLA.
        rope_scaling: the checkpoint's own dictionary, with "rope_type"; empty for plain RoPE.
        mla, indexer, moe: None where the model has none.
        num_nextn_predict_layers: layers behind the last, for multi-token prediction, which the main model does without.
        weight_block_size: rows and columns that share a factor in FP8 weights, where there are any.
        eos_token_ids: tokens that end a sequence.
        dtype: what the checkpoint says it is stored in.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    mla: MLAConfig | None = None
    indexer: IndexerConfig | None = None
    moe: MoEConfig | None = None
    num_nextn_predict_layers: int = 0
    weight_block_size: tuple[int, int] = (128, 128)
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.rotary_dim % 2:
            raise ModelError(f"{self.rotary_dim} dimensions rotate; rotary embedding needs an even number")
        if self.moe is not None and self.moe.n_routed_experts % self.moe.n_group:
            raise ModelError(
                f"n_routed_experts ({self.moe.n_routed_experts}) is not a multiple of n_group ({self.moe.n_group})"
            )

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that rotary embedding turns."""
        return self.mla.qk_rope_head_dim if self.mla is not None else self.head_dim

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read config.json, and the end-of-sequence tokens of generation_config.json beside it."""
        raw = read_json(folder / "config.json")
        generation_path = folder / "generation_config.json"
        generation = read_json(generation_path) if generation_path.exists() else {}
        return cls.from_hf(raw, generation)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
        """Translate the dictionaries of config.json and generation_config.json."""
        _refuse_unsupported(raw)
        try:
            return cls(
                **_hf_shape(raw),
                **_hf_rope(raw),
                mla=_hf_mla(raw),
                indexer=_hf_indexer(raw),
                moe=_hf_moe(raw),
                num_nextn_predict_layers=raw.get("num_nextn_predict_layers", 0) if "n_routed_experts" in raw else 0,
                weight_block_size=tuple((raw.get("quantization_config") or {}).get("weight_block_size") or (128, 128)),
                eos_token_ids=tuple(
                    dict.fromkeys(_as_list(raw.get("eos_token_id")) + _as_list(generation.get("eos_token_id")))
                ),
                dtype=raw.get("dtype") or raw.get("torch_dtype"),
            )
        except KeyError as error:
            raise ModelError(f"config.json lacks {error.args[0]!r}") from None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensor_names: frozenset[str]) -> ModelConfig:
        """Translate GGUF metadata (keys: ggml's docs/gguf.md)."""
        arch = metadata.get("general.architecture")
        if arch not in ("llama", "deepseek2"):
            raise ModelError(f"GGUF architecture {arch!r} is not supported yet; supported are 'llama' and 'deepseek2'")
        if arch == "llama" and metadata.get("llama.expert_count"):
            raise ModelError("a Llama with experts (Mixtral) is not supported")
        own = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
        try:
            num_heads, hidden_size = own["attention.head_count"], own["embedding_length"]
            eos = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
            return cls(
                architecture="LlamaForCausalLM" if arch == "llama" else "DeepseekV2ForCausalLM",
                vocab_size=own.get("vocab_size") or len(metadata["tokenizer.ggml.tokens"]),
                hidden_size=hidden_size,
                intermediate_size=own["feed_forward_length"],
                num_hidden_layers=own["block_count"],
                num_attention_heads=num_heads,
                num_key_value_heads=own.get("attention.head_count_kv", num_heads) if arch == "llama" else num_heads,
                head_dim=own.get("attention.key_length", hidden_size // num_heads),
                rms_norm_eps=own["attention.layer_norm_rms_epsilon"],
                max_position_embeddings=own["context_length"],
                rope_theta=own.get("rope.freq_base", 10000.0),
                rope_scaling=_gguf_rope(own, tensor_names),
                tie_word_embeddings="output.weight" not in tensor_names,
                attention_bias="blk.0.attn_q.bias" in tensor_names,
                mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
                mla=_gguf_mla(own) if arch == "deepseek2" else None,
                moe=_gguf_moe(own, tensor_names) if arch == "deepseek2" else None,
                eos_token_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
            )
        except KeyError as error:
            raise ModelError(f"the GGUF file lacks {error.args[0]!r}") from None


def _gguf_rope(own: Mapping[str, Any], tensor_names: frozenset[str]) -> dict[str, Any]:
    if "rope_freqs.weight" in tensor_names:
        return {"rope_type": "gguf_factors"}
    if (kind := own.get("rope.scaling.type", "none")) == "none":
        return {}
    rope = {"rope_type": kind, "factor": own["rope.scaling.factor"]}
    if (original := own.get("rope.scaling.original_context_length")) is not None:
        rope["original_max_position_embeddings"] = original
    if (multiplier := own.get("rope.scaling.yarn_log_multiplier")) is not None:
        rope["mscale"] = rope["mscale_all_dim"] = multiplier * 10  # stored as 0.1 * mscale_all_dim
    return rope


def _gguf_mla(own: Mapping[str, Any]) -> MLAConfig:
    kv_lora_rank, rope_dim = own["attention.kv_lora_rank"], own["rope.dimension_count"]
    # Files made since mid-2025 describe the cached latent as key and value, and the heads in the *_mla keys.
    key_length = own.get("attention.key_length_mla", own["attention.key_length"])
    return MLAConfig(
        q_lora_rank=own.get("attention.q_lora_rank") or None,
        kv_lora_rank=kv_lora_rank,
        qk_nope_head_dim=key_length - rope_dim,
        qk_rope_head_dim=rope_dim,
        v_head_dim=own.get("attention.value_length_mla", own["attention.value_length"]),
    )


def _gguf_moe(own: Mapping[str, Any], tensor_names: frozenset[str]) -> MoEConfig:
    first_sparse, groups = own["leading_dense_block_count"], own.get("expert_group_count", 1)
    biased = f"blk.{first_sparse}.exp_probs_b.bias" in tensor_names
    return MoEConfig(
        n_routed_experts=own["expert_count"],
        num_experts_per_tok=own["expert_used_count"],
        n_shared_experts=own.get("expert_shared_count", 0),
        moe_intermediate_size=own["expert_feed_forward_length"],
        first_k_dense_replace=first_sparse,
        scoring_func={1: "softmax", 2: "sigmoid"}[own.get("expert_gating_func", 1)],
        topk_method="noaux_tc" if biased else "group_limited_greedy" if groups > 1 else "greedy",
        n_group=groups,
        topk_group=own.get("expert_group_used_count", 1),
        norm_topk_prob=own.get("expert_weights_norm", False),
        routed_scaling_factor=own.get("expert_weights_scale", 1.0),
    )


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    architecture = (raw.get("architectures") or ["(none named)"])[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"architecture {architecture} is not supported yet; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise ModelError(f"hidden_act is {activation!r}; only 'silu' is computed here")
    if (quantization := raw.get("quantization_config")) and quantization.get("quant_method") != "fp8":
        raise ModelError(
            f"the checkpoint is quantised by {quantization.get('quant_method')!r}; of quantised weights, "
            "only DeepSeek's block-wise 'fp8' is read"
        )


def _hf_shape(raw: Mapping[str, Any]) -> dict[str, Any]:
    num_heads = raw["num_attention_heads"]
    return {
        "architecture": raw["architectures"][0],
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"],
        "num_hidden_layers": raw["num_hidden_layers"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": raw.get("num_key_value_heads") or num_heads,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // num_heads,
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": raw.get("max_position_embeddings", 2048),
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "attention_bias": raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
    }


def _hf_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers 5 writes rope_parameters; before, rope_theta stood alone and rope_scaling beside it."""
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    theta = float(rope.pop("rope_theta", None) or raw.get("rope_theta", 10000.0))
    return {"rope_theta": theta, "rope_scaling": {} if rope.get("rope_type", "default") == "default" else rope}


def _hf_mla(raw: Mapping[str, Any]) -> MLAConfig | None:
    if not raw.get("kv_lora_rank"):
        return None
    return MLAConfig(
        q_lora_rank=raw.get("q_lora_rank"),
        kv_lora_rank=raw["kv_lora_rank"],
        qk_nope_head_dim=raw["qk_nope_head_dim"],
        qk_rope_head_dim=raw["qk_rope_head_dim"],
        v_head_dim=raw["v_head_dim"],
    )


def _hf_indexer(raw: Mapping[str, Any]) -> IndexerConfig | None:
    if not raw.get("index_topk"):
        return None
    return IndexerConfig(
        index_n_heads=raw["index_n_heads"], index_head_dim=raw["index_head_dim"], index_topk=raw["index_topk"]
    )


def _hf_moe(raw: Mapping[str, Any]) -> MoEConfig | None:
    if not raw.get("n_routed_experts"):
        return None
    # DeepSeek's V3 configs say noaux_tc and sigmoid; those that transformers writes leave both out.
    is_v3 = raw["architectures"][0] in ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM")
    config = MoEConfig(
        n_routed_experts=raw["n_routed_experts"],
        num_experts_per_tok=raw["num_experts_per_tok"],
        n_shared_experts=raw.get("n_shared_experts") or 0,
        moe_intermediate_size=raw["moe_intermediate_size"],
        first_k_dense_replace=raw.get("first_k_dense_replace", 0),
        moe_layer_freq=raw.get("moe_layer_freq", 1),
        scoring_func=raw.get("scoring_func", "sigmoid" if is_v3 else "softmax"),
        topk_method=raw.get("topk_method", "noaux_tc" if is_v3 else "greedy"),
        n_group=raw.get("n_group") or 1,
        topk_group=raw.get("topk_group") or 1,
        norm_topk_prob=raw.get("norm_topk_prob", is_v3),
        routed_scaling_factor=raw.get("routed_scaling_factor", 1.0),
    )
    for name, valid in (
        ("scoring_func", ("softmax", "sigmoid")),
        ("topk_method", ("greedy", "group_limited_greedy", "noaux_tc")),
    ):
        if getattr(config, name) not in valid:
            raise ModelError(f"{name} is {getattr(config, name)!r}; valid are {', '.join(valid)}")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        ModelError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]

"""A model's shape, by the names of its config.json (DeepSeek's names). Imports no torch.

Owns the translation from what checkpoints say (config.json in old and new spellings, GGUF metadata) to one
ModelConfig, and the refusal of what the decoders here do not compute.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from engine.errors import ModelError
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


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        q_lora_rank: width of the compressed query; None where queries are not compressed.
        kv_lora_rank: width of the latent that keys and values are made from, and that is cached.
        qk_nope_head_dim: a head's query and key dimensions without position.
        qk_rope_head_dim: those with rotary position; the key's are shared by all heads, and cached.
        v_head_dim: a head's value dimensions.
        rope_interleave: whether RoPE pairs neighbouring dimensions, as in all that is released, or halves.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_interleave: bool = True

    def __post_init__(self) -> None:
        if self.qk_nope_head_dim < 1:
            raise ModelError(f"qk_nope_head_dim (a key's length less its rotary part) is {self.qk_nope_head_dim}")


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
            two, with a correction bias that chooses but does not weigh).
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

    def __post_init__(self) -> None:
        if self.n_routed_experts % self.n_group:
            raise ModelError(
                f"n_routed_experts ({self.n_routed_experts}) is not a multiple of n_group ({self.n_group})"
            )
        if self.topk_group > self.n_group:
            raise ModelError(f"topk_group ({self.topk_group}) exceeds n_group ({self.n_group})")
        eligible = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > (self.n_routed_experts if self.topk_method == "greedy" else eligible):
            raise ModelError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds the experts of topk_group groups"
            )

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
        int8: which layers are stored in int8, and how they treat their input; None if none are.
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
    int8: Int8Scheme | None = None
    weight_block_size: tuple[int, int] = (128, 128)
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.indexer is not None:
            if self.mla is None or self.mla.q_lora_rank is None:
                raise ModelError("index_topk is set without q_lora_rank; the indexer reads the compressed query")
            if self.indexer.index_head_dim < self.mla.qk_rope_head_dim:
                raise ModelError(
                    f"index_head_dim ({self.indexer.index_head_dim}) is less than the qk_rope_head_dim "
                    f"({self.mla.qk_rope_head_dim}) of it that rotate"
                )
        if self.rotary_dim % 2:
            raise ModelError(f"{self.rotary_dim} dimensions rotate; rotary embedding needs an even number")

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
        """Translate the dictionaries of config.json and generation_config.json.

        Raises:
            ModelError: naming the key and what is valid, as far as that can be told.
        """
        try:
            return cls._from_hf(raw, generation)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ModelError(f"config.json has a value of a wrong kind: {error}") from None

    @classmethod
    def _from_hf(cls, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
        _refuse_unsupported(raw)
        keys = _Keys(raw, "config.json")
        return cls(
            **_hf_shape(keys),
            **_hf_rope(keys),
            mla=_hf_mla(keys),
            indexer=_hf_indexer(keys),
            moe=_hf_moe(keys),
            num_nextn_predict_layers=keys.integer("num_nextn_predict_layers", int(_is_v3(keys)), at_least=0),
            int8=_hf_quantization(raw),
            weight_block_size=_hf_block_size(raw),
            eos_token_ids=_eos_token_ids(raw, generation),
            dtype=raw.get("dtype") or raw.get("torch_dtype"),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensor_names: frozenset[str]) -> ModelConfig:
        """Translate GGUF metadata (keys: ggml's docs/gguf.md)."""
        arch = metadata.get("general.architecture")
        if arch not in ("llama", "deepseek2"):
            raise ModelError(f"GGUF architecture {arch!r} is not supported yet; supported are 'llama' and 'deepseek2'")
        if arch == "llama" and metadata.get("llama.expert_count"):
            raise ModelError("a Llama with experts (Mixtral) is not supported")
        keys = _Keys(metadata, "the GGUF file", f"{arch}.")
        num_heads, hidden_size = keys.integer("attention.head_count"), keys.integer("embedding_length")
        tokens = _Keys(metadata, "the GGUF file").get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list):
            raise ModelError(f"tokenizer.ggml.tokens of the GGUF file is {tokens!r}; expected a list")
        eos = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return cls(
            architecture="LlamaForCausalLM" if arch == "llama" else "DeepseekV2ForCausalLM",
            vocab_size=keys.integer("vocab_size", len(tokens)),
            hidden_size=hidden_size,
            intermediate_size=keys.integer("feed_forward_length"),
            num_hidden_layers=keys.integer("block_count"),
            num_attention_heads=num_heads,
            num_key_value_heads=keys.integer("attention.head_count_kv", num_heads) if arch == "llama" else num_heads,
            head_dim=keys.integer("attention.key_length", hidden_size // num_heads),
            rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            max_position_embeddings=keys.integer("context_length"),
            rope_theta=keys.number("rope.freq_base", 10000.0),
            rope_scaling=_gguf_rope(keys, tensor_names),
            tie_word_embeddings="output.weight" not in tensor_names,
            attention_bias="blk.0.attn_q.bias" in tensor_names,
            mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
            mla=_gguf_mla(keys) if arch == "deepseek2" else None,
            moe=_gguf_moe(keys, tensor_names) if arch == "deepseek2" else None,
            eos_token_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
        )


_REQUIRED: Any = object()
_LARGEST = (1 << 24) - 1  # no size of a model is near it; one beyond is damage, and would only exhaust the memory
_ROPE_NUMBERS = {
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


class _Keys:
    """A checkpoint's settings by name, each checked for its type, so that what is wrong is named."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values, self._where, self._prefix = values, where, prefix

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """A value as it is; null means the default."""
        value = self.values.get(self._prefix + name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelError(f"{self._where} lacks '{self._prefix}{name}'")
        return default

    def integer(self, name: str, default: Any = _REQUIRED, *, at_least: int = 1) -> int:
        """A whole number."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= _LARGEST:
            self.refuse(name, value, f"a whole number from {at_least} to {_LARGEST}")
        return int(value)

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A positive number."""
        value = self.get(name, default)
        if not _is_positive(value):
            self.refuse(name, value, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return bool(value)

    def choice(self, name: str, default: str, valid: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.get(name, default)
        if value not in valid:
            self.refuse(name, value, f"one of {', '.join(valid)}")
        return str(value)

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        """Raise the error that names the key and what was expected."""
        raise ModelError(f"{self._prefix}{name} in {self._where} is {value!r}; expected {expected}")


def _gguf_rope(keys: _Keys, tensor_names: frozenset[str]) -> dict[str, Any]:
    if "rope_freqs.weight" in tensor_names:
        return {"rope_type": "gguf_factors"}
    if (kind := keys.get("rope.scaling.type", "none")) == "none":
        return {}
    rope = {"rope_type": kind, "factor": keys.number("rope.scaling.factor")}
    if original := keys.integer("rope.scaling.original_context_length", 0, at_least=0):
        rope["original_max_position_embeddings"] = original
    for name in ("beta_fast", "beta_slow"):
        if keys.get(f"rope.scaling.yarn_{name}", None) is not None:
            rope[name] = keys.number(f"rope.scaling.yarn_{name}")
    if multiplier := keys.get("rope.scaling.yarn_log_multiplier", 0):
        rope["mscale"] = rope["mscale_all_dim"] = multiplier * 10  # stored as 0.1 * mscale_all_dim
    return rope


def _gguf_mla(keys: _Keys) -> MLAConfig:
    rope_dim = keys.integer("rope.dimension_count")
    # Files made since mid-2025 describe the cached latent as key and value, and the heads in the *_mla keys.
    mla = "_mla" if keys.get("attention.key_length_mla", None) else ""
    return MLAConfig(
        q_lora_rank=keys.integer("attention.q_lora_rank", 0, at_least=0) or None,
        kv_lora_rank=keys.integer("attention.kv_lora_rank"),
        qk_nope_head_dim=keys.integer(f"attention.key_length{mla}") - rope_dim,
        qk_rope_head_dim=rope_dim,
        v_head_dim=keys.integer(f"attention.value_length{mla}"),
    )


def _gguf_moe(keys: _Keys, tensor_names: frozenset[str]) -> MoEConfig:
    first_sparse, groups = keys.integer("leading_dense_block_count", at_least=0), keys.integer("expert_group_count", 1)
    biased = f"blk.{first_sparse}.exp_probs_b.bias" in tensor_names
    gating = keys.integer("expert_gating_func", 2 if biased else 1)
    if gating not in (1, 2):
        keys.refuse("expert_gating_func", gating, "1 (softmax) or 2 (sigmoid)")
    return MoEConfig(
        n_routed_experts=keys.integer("expert_count"),
        num_experts_per_tok=keys.integer("expert_used_count"),
        n_shared_experts=keys.integer("expert_shared_count", 0, at_least=0),
        moe_intermediate_size=keys.integer("expert_feed_forward_length"),
        first_k_dense_replace=first_sparse,
        scoring_func="softmax" if gating == 1 else "sigmoid",
        topk_method="noaux_tc" if biased else "group_limited_greedy" if groups > 1 else "greedy",
        n_group=groups,
        topk_group=keys.integer("expert_group_used_count", 1),
        norm_topk_prob=keys.flag("expert_weights_norm", False),
        routed_scaling_factor=keys.number("expert_weights_scale", 1.0),
    )


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
    """The checkpoint's int8 scheme; None where weights are plain numbers, or FP8, which becomes that when loaded."""
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
            f"the checkpoint is quantised by {method!r}; of quantised weights, DeepSeek's block-wise 'fp8' and "
            "the int8 ones of 'compressed-tensors' are read"
        )
    return None


def _hf_shape(keys: _Keys) -> dict[str, Any]:
    num_heads, hidden_size = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    return {
        "architecture": keys.values["architectures"][0],
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": keys.integer("intermediate_size"),
        "num_hidden_layers": keys.integer("num_hidden_layers"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.integer("num_key_value_heads", num_heads),
        "head_dim": keys.integer("head_dim", hidden_size // num_heads),
        "rms_norm_eps": keys.number("rms_norm_eps", 1e-6),
        "max_position_embeddings": keys.integer("max_position_embeddings", 2048),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", False),
        "attention_bias": keys.flag("attention_bias", False),
        "mlp_bias": keys.flag("mlp_bias", False),
    }


def _hf_rope(keys: _Keys) -> dict[str, Any]:
    """Transformers 5 writes rope_parameters; before, rope_theta stood alone and rope_scaling beside it."""
    name = "rope_parameters" if keys.get("rope_parameters", None) else "rope_scaling"
    rope = keys.get(name, {})
    if not isinstance(rope, dict):
        keys.refuse(name, rope, "an object")
    rope = dict(rope)
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    for key in _ROPE_NUMBERS & rope.keys():
        if rope[key] is not None and not _is_positive(rope[key]):
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


def _hf_mla(keys: _Keys) -> MLAConfig | None:
    if not keys.get("kv_lora_rank", 0):
        return None
    return MLAConfig(
        q_lora_rank=keys.integer("q_lora_rank", 0, at_least=0) or None,
        kv_lora_rank=keys.integer("kv_lora_rank"),
        qk_nope_head_dim=keys.integer("qk_nope_head_dim"),
        qk_rope_head_dim=keys.integer("qk_rope_head_dim"),
        v_head_dim=keys.integer("v_head_dim"),
        rope_interleave=keys.flag("rope_interleave", True),
    )


def _hf_indexer(keys: _Keys) -> IndexerConfig | None:
    if not keys.get("index_topk", 0):
        return None
    return IndexerConfig(
        index_n_heads=keys.integer("index_n_heads"),
        index_head_dim=keys.integer("index_head_dim"),
        index_topk=keys.integer("index_topk"),
    )


def _is_v3(keys: _Keys) -> bool:
    return keys.values["architectures"][0] in ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM")


def _hf_moe(keys: _Keys) -> MoEConfig | None:
    if not keys.get("n_routed_experts", 0):
        return None
    is_v3 = _is_v3(keys)  # its configs say noaux_tc and sigmoid, but for those that transformers writes
    return MoEConfig(
        n_routed_experts=keys.integer("n_routed_experts"),
        num_experts_per_tok=keys.integer("num_experts_per_tok"),
        n_shared_experts=keys.integer("n_shared_experts", 0, at_least=0),
        moe_intermediate_size=keys.integer("moe_intermediate_size"),
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        ModelError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id <= _LARGEST:
                raise ModelError(f"eos_token_id is {value!r}; expected a token id or a list of them")
            ids.append(token_id)
    return tuple(dict.fromkeys(ids))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf

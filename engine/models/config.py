"""A model's shape, by the names of its config.json (the names that DeepSeek's configs use). Imports no torch.

Owns the translation from what checkpoints say (config.json of Hugging Face folders in old and new spellings, GGUF
metadata) to one ModelConfig, and the refusal of what the decoders here do not compute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a decoder is built from.

    Attributes:
        rope_scaling: the checkpoint's own dictionary, with "rope_type"; empty for plain RoPE.
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
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim is {self.head_dim}; rotary embedding needs an even one")

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
        architectures = raw.get("architectures") or ["(none named)"]
        if architectures[0] not in SUPPORTED_ARCHITECTURES:
            raise ModelError(
                f"architecture {architectures[0]} is not supported yet; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        if (activation := raw.get("hidden_act", "silu")) != "silu":
            raise ModelError(f"hidden_act is {activation!r}; only 'silu' is computed here")
        if raw.get("quantization_config"):
            raise ModelError(
                "the checkpoint is quantised (quantization_config); quantised weights are not supported yet"
            )
        try:
            num_heads = raw["num_attention_heads"]
            # transformers 5 writes rope_parameters; before, rope_theta stood alone and rope_scaling beside it.
            rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
            if "type" in rope:
                rope.setdefault("rope_type", rope.pop("type"))
            theta = rope.pop("rope_theta", None) or raw.get("rope_theta", 10000.0)
            return cls(
                architecture=architectures[0],
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_hidden_layers=raw["num_hidden_layers"],
                num_attention_heads=num_heads,
                num_key_value_heads=raw.get("num_key_value_heads") or num_heads,
                head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
                rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
                max_position_embeddings=raw.get("max_position_embeddings", 2048),
                rope_theta=float(theta),
                rope_scaling={} if rope.get("rope_type", "default") == "default" else rope,
                tie_word_embeddings=raw.get("tie_word_embeddings", False),
                attention_bias=raw.get("attention_bias", False),
                mlp_bias=raw.get("mlp_bias", False),
                eos_token_ids=tuple(
                    dict.fromkeys(_as_list(raw.get("eos_token_id")) + _as_list(generation.get("eos_token_id")))
                ),
                dtype=raw.get("dtype") or raw.get("torch_dtype"),
            )
        except KeyError as error:
            raise ModelError(f"config.json lacks {error.args[0]!r}") from None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensor_names: frozenset[str]) -> ModelConfig:
        """Translate GGUF metadata (keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
        arch = metadata.get("general.architecture")
        if arch != "llama":
            raise ModelError(f"GGUF architecture {arch!r} is not supported yet; supported is 'llama'")
        if f"{arch}.expert_count" in metadata:
            raise ModelError("a Llama with experts (Mixtral) is not supported yet")
        try:
            num_heads = metadata[f"{arch}.attention.head_count"]
            hidden_size = metadata[f"{arch}.embedding_length"]
            rope: dict[str, Any] = {}
            if (kind := metadata.get(f"{arch}.rope.scaling.type", "none")) != "none":
                rope = {"rope_type": kind, "factor": metadata[f"{arch}.rope.scaling.factor"]}
                if (original := metadata.get(f"{arch}.rope.scaling.original_context_length")) is not None:
                    rope["original_max_position_embeddings"] = original
            if "rope_freqs.weight" in tensor_names:
                rope = {"rope_type": "gguf_factors"}
            eos = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
            return cls(
                architecture="LlamaForCausalLM",
                vocab_size=metadata.get(f"{arch}.vocab_size") or len(metadata["tokenizer.ggml.tokens"]),
                hidden_size=hidden_size,
                intermediate_size=metadata[f"{arch}.feed_forward_length"],
                num_hidden_layers=metadata[f"{arch}.block_count"],
                num_attention_heads=num_heads,
                num_key_value_heads=metadata.get(f"{arch}.attention.head_count_kv", num_heads),
                head_dim=metadata.get(f"{arch}.attention.key_length", hidden_size // num_heads),
                rms_norm_eps=metadata[f"{arch}.attention.layer_norm_rms_epsilon"],
                max_position_embeddings=metadata[f"{arch}.context_length"],
                rope_theta=metadata.get(f"{arch}.rope.freq_base", 10000.0),
                rope_scaling=rope,
                tie_word_embeddings="output.weight" not in tensor_names,
                attention_bias="blk.0.attn_q.bias" in tensor_names,
                mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
                eos_token_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
            )
        except KeyError as error:
            raise ModelError(f"the GGUF file lacks {error.args[0]!r}") from None


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

"""What config.json says alike in every family: heads, RoPE, dtype, quantisation, ends of text. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.config_keys import LARGEST, LARGEST_EPSILON, MOST_LAYERS, Keys, is_positive
from engine.models.quantization_config import read_quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def read_common(keys: Keys, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ModelConfig: the shape of grouped-query attention, and what else is alike in every family.

    Raises:
        ModelError: naming the key and what is valid.
    """
    raw = keys.values
    sizes = keys.integers("num_attention_heads", "hidden_size", "vocab_size")
    num_heads = sizes["num_attention_heads"]
    _token_ids("bos_token_id", raw, generation)  # only checked: the tokenizer's is the one that is used
    return {
        **sizes,
        "num_hidden_layers": keys.integer("num_hidden_layers", at_most=MOST_LAYERS),
        "architecture": raw["architectures"][0],
        "num_key_value_heads": keys.integer("num_key_value_heads", num_heads),
        "head_dim": keys.integer("head_dim", sizes["hidden_size"] // num_heads),
        "rms_norm_eps": keys.number("rms_norm_eps", 1e-6, at_most=LARGEST_EPSILON),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", False),
        **_rope(keys),
        **read_quantization(raw),
        "eos_token_ids": _ends(sizes["vocab_size"], raw, generation),
        "dtype": _dtype(keys),
    }


def _rope(keys: Keys) -> dict[str, Any]:
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


def _dtype(keys: Keys) -> str | None:
    """The dtype of the weights, which transformers 5 calls dtype and earlier versions torch_dtype."""
    name = next((name for name in ("dtype", "torch_dtype") if keys.get(name, None) is not None), None)
    return None if name is None else keys.choice(name, "", DTYPES)


def _ends(vocab_size: int, *configs: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end a sequence. One that the model cannot give is damage: sequences would not end."""
    ids = _token_ids("eos_token_id", *configs)
    if any(token_id >= vocab_size for token_id in ids):
        raise ModelError(f"eos_token_id is {max(ids)}; expected ids below vocab_size, which is {vocab_size}")
    return ids


def _token_ids(name: str, *configs: Mapping[str, Any]) -> tuple[int, ...]:
    ids: list[int] = []
    for config in configs:
        value = config.get(name)
        for token_id in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id <= LARGEST:
                raise ModelError(f"{name} is {value!r}; expected a token id or a list of them")
            ids.append(token_id)
    return tuple(dict.fromkeys(ids))

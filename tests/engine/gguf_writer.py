"""GGUF files made from Hugging Face checkpoints the way that llama.cpp's converter makes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    folder: Path, path: Path, kind: Kind = Kind.F32, *, extra: dict[str, np.ndarray] | None = None, **metadata: Any
) -> dict[str, torch.Tensor]:
    """Convert a folder; `metadata` adds to or replaces (None: leaves out) keys, dots written as double underscores.

    Returns:
        The weights as stored, quantisation undone, under their Hugging Face names and in Hugging Face's order.
    """
    config = json.loads((folder / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (_metadata(config) | {key.replace("__", "."): value for key, value in metadata.items()}).items():
        if value is not None:
            _add(writer, key, value)
    stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        num_heads = heads.get(name.split(".")[-2])
        array = tensor.float().numpy()
        array = array if num_heads is None else _permuted(array, num_heads)
        used = kind if array.ndim > 1 else Kind.F32
        data = gguf.quants.quantize(array, used)
        writer.add_tensor(gguf_name(name), data, raw_dtype=used)
        back = gguf.quants.dequantize(data, used)
        stored[name] = torch.tensor(back if num_heads is None else _unpermuted(back, num_heads))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(config["vocab_size"])],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _permuted(array: np.ndarray, num_heads: int) -> np.ndarray:
    halves = array.reshape(num_heads, 2, array.shape[0] // num_heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _unpermuted(array: np.ndarray, num_heads: int) -> np.ndarray:
    pairs = array.reshape(num_heads, array.shape[0] // num_heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))

"""GGUF files made from Hugging Face checkpoints the way that llama.cpp's converter makes them: Llama, DeepSeek V2, V3.

Two kinds of DeepSeek files are about: the newer converter splits kv_b into its key part (transposed) and its value
part, and describes the cached latent as the one key and value head; the older one left kv_b whole.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from tests.support import tiny_deepseek
from tests.support.blocks import random_weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GGUF_VARIANTS = [variant for variant, (kind, _) in tiny_deepseek.VARIANTS.items() if kind in ("v2", "v3")]
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate.e_score_correction": "exp_probs_b",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_EXPERT = re.compile(r"(?<=\.experts\.)(\d+)\.")


def write_gguf(
    folder: Path,
    path: Path,
    kind: Kind | Callable[[str], Kind] = Kind.F32,
    *,
    split_kv_b: bool = True,
    extra: dict[str, np.ndarray | None] | None = None,
    most_in_part: int = 0,
    **metadata: Any,
) -> dict[str, torch.Tensor]:
    """Convert a folder.

    `extra` adds to, replaces or (None) leaves out tensors, `metadata` keys, with dots written as double underscores.
    `kind` is of all tensors, or says of each. Vectors and router gates stay F32, and rows that do not divide into
    blocks of `kind` are F16. A file of more than `most_in_part` tensors is split, if that is not 0.

    Returns:
        The weights as stored, quantisation undone, under their Hugging Face names and in Hugging Face's order.
    """
    config = json.loads((folder / "config.json").read_text())
    keys = _llama_keys(config) if _is_llama(config) else _deepseek_keys(config, split_kv_b)
    writer = gguf.GGUFWriter(path, "llama" if _is_llama(config) else "deepseek2", split_max_tensors=most_in_part)
    for key, value in (keys | {key.replace("__", "."): value for key, value in metadata.items()}).items():
        if value is not None:
            _add(writer, key, value)
    tensors = load_file(folder / "model.safetensors")
    stored = {}
    for name, array in _converted(config, tensors, split_kv_b).items():
        used = _kind_of(name, array, kind)
        data = quantize(array, used)
        stored[name] = gguf.quants.dequantize(data, used)
        if name not in (extra or {}):
            writer.add_tensor(name, data, raw_dtype=used)
    for name, replacement in (extra or {}).items():
        if replacement is not None:
            writer.add_tensor(name, replacement)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.tensor(_taken_back(config, name, stored)) for name in tensors}


def quantize(array: np.ndarray, kind: Kind) -> np.ndarray:
    """Blocks of an array's values; random blocks of a type that the gguf package cannot write."""
    try:
        return gguf.quants.quantize(array, kind)
    except NotImplementedError:
        rows = math.prod(array.shape[:-1])
        weight = random_weight(kind.name.lower(), rows, array.shape[-1], seed=rows)
        return weight.rows_OB.numpy().reshape(*array.shape[:-1], -1)


def gguf_name(name: str) -> str:
    """The tensor that a Hugging Face tensor becomes, or becomes part of; kv_b's where it is left whole."""
    stem, _, kind = name.replace("e_score_correction_bias", "e_score_correction.bias").rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    _, _, layer, part = _EXPERT.sub("", stem).split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _is_llama(config: dict[str, Any]) -> bool:
    return config["architectures"] == ["LlamaForCausalLM"]


def _kind_of(name: str, array: np.ndarray, kind: Kind | Callable[[str], Kind]) -> Kind:
    kind = kind if isinstance(kind, Kind) else kind(name)
    if array.ndim == 1 or "ffn_gate_inp" in name:
        return Kind.F32
    return kind if array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def _converted(config: dict[str, Any], tensors: dict[str, torch.Tensor], split_kv_b: bool) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for hf_name, tensor in tensors.items():
        name, array = gguf_name(hf_name), tensor.float().numpy()
        if expert := _EXPERT.search(hf_name):
            stack = arrays.setdefault(name, np.empty((config["n_routed_experts"], *array.shape), dtype=np.float32))
            stack[int(expert[1])] = array
        elif "attn_kv_b" in name and split_kv_b:
            heads = array.reshape(config["num_attention_heads"], -1, array.shape[1])
            keys, values = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
            arrays[name.replace("kv_b", "k_b")] = np.ascontiguousarray(keys.swapaxes(1, 2))
            arrays[name.replace("kv_b", "v_b")] = np.ascontiguousarray(values)
        else:
            num_heads = _permuted_heads(config, hf_name)
            arrays[name] = array if num_heads is None else _permuted(array, num_heads)
    return arrays


def _taken_back(config: dict[str, Any], hf_name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """A Hugging Face tensor out of what it was converted to."""
    name = gguf_name(hf_name)
    if expert := _EXPERT.search(hf_name):
        return arrays[name][int(expert[1])]
    if name not in arrays:
        keys, values = arrays[name.replace("kv_b", "k_b")], arrays[name.replace("kv_b", "v_b")]
        return np.concatenate([keys.swapaxes(1, 2), values], axis=1).reshape(-1, values.shape[-1])
    num_heads = _permuted_heads(config, hf_name)
    return arrays[name] if num_heads is None else _unpermuted(arrays[name], num_heads)


def _llama_keys(config: dict[str, Any]) -> dict[str, Any]:
    return _common_keys(config, "llama") | {
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
    }


def _deepseek_keys(config: dict[str, Any], split_kv_b: bool) -> dict[str, Any]:
    scoring = config.get("scoring_func") or ("sigmoid" if "V3" in config["architectures"][0] else "softmax")
    head, rank = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["kv_lora_rank"]
    keys = {
        "leading_dense_block_count": config["first_k_dense_replace"],
        "vocab_size": config["vocab_size"],
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": rank,
        "attention.head_count_kv": 1 if split_kv_b else config["num_attention_heads"],
        "attention.key_length": rank + config["qk_rope_head_dim"] if split_kv_b else head,
        "attention.value_length": rank if split_kv_b else config["v_head_dim"],
        "attention.key_length_mla": head if split_kv_b else None,
        "attention.value_length_mla": config["v_head_dim"] if split_kv_b else None,
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "expert_gating_func": {"softmax": 1, "sigmoid": 2}[scoring],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"] or None,
        "rope.dimension_count": config["qk_rope_head_dim"],
        **_yarn_keys(config["rope_parameters"]),
    }
    return _common_keys(config, "deepseek2") | {f"deepseek2.{key}": value for key, value in keys.items()}


def _yarn_keys(rope: dict[str, Any]) -> dict[str, Any]:
    if rope["rope_type"] != "yarn":
        return {}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope["factor"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.yarn_beta_fast": float(rope["beta_fast"]),
        "rope.scaling.yarn_beta_slow": float(rope["beta_slow"]),
        "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"],
    }


def _common_keys(config: dict[str, Any], arch: str) -> dict[str, Any]:
    return {
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(config["vocab_size"])],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _permuted_heads(config: dict[str, Any], hf_name: str) -> int | None:
    """How many heads' rotary rows the converter reorders, if any: Llama's queries and keys, none of DeepSeek's."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    return heads.get(hf_name.split(".")[-2]) if _is_llama(config) else None


def _permuted(array: np.ndarray, num_heads: int) -> np.ndarray:
    halves = array.reshape(num_heads, 2, array.shape[0] // num_heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _unpermuted(array: np.ndarray, num_heads: int) -> np.ndarray:
    pairs = array.reshape(num_heads, array.shape[0] // num_heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))

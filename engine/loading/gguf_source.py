"""A GGUF file's tensors under Hugging Face names. For `llama` and `deepseek2`.

Matrices in blocks that kernels.block_weight has are handed out as they lie in the file, others dequantized. The source
undoes what converters to GGUF change: they reorder Llama's query and key rows (rotary dimensions as neighbouring pairs;
here as halves), stack all experts in one tensor, and split kv_b into its key and value parts. The names are llama.cpp's
(gguf-py's tensor_mapping).
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from engine.errors import ModelError
from engine.loading.mapped_bytes import mapped_bytes
from engine.loading.weights import StoredTensor
from engine.memory import drop_pages
from kernels.block_weight import FORMATS, BlockWeight
from kernels.linear_int8 import Input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.loading.gguf_file import GGUFFile, GGUFTensor
    from engine.models.config import ModelConfig

logger = logging.getLogger(__name__)

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",  # nosec B105  # no secret
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_EXPANDED_SIZE = 2  # bytes of a value, mostly
_MAPPED_AROUND = 2 << 20  # bytes; where the system caches a file in large pages, a page fault maps a whole one
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_EXPERTS = re.compile(r"ffn_(gate|up|down)_exps")


class GGUFSource:
    """A TensorSource (engine.loading.weights) over one file, or its parts (engine.loading.gguf_parts)."""

    def __init__(self, files: Sequence[GGUFFile], config: ModelConfig) -> None:
        """List the tensors.

        Raises:
            ModelError: a directory does not fit its file: a tensor's bytes end behind it, or are another's, too.
        """
        self.path = files[0].path
        self._files = files
        self._tensors = {name: (file, tensor) for file in files for name, tensor in file.tensors.items()}
        for file in files:
            _check_places(file)
        self._is_llama = config.mla is None
        self._heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        self._num_experts = config.moe.n_routed_experts if config.moe is not None else 0
        self._readers: dict[str, functools.partial[Any]] = {}
        self._mapped: list[tuple[GGUFFile, int, int]] = []  # offset and size of what is handed out as it lies there
        for name in self._tensors:
            self._add(name)
        self._warn_of_expanded()

    def names(self) -> set[str]:
        return set(self._readers)

    def read(self, name: str) -> torch.Tensor | BlockWeight:
        for part in self._mapped:
            _drop(*part)
        self._mapped.clear()
        value: torch.Tensor | BlockWeight = self._readers[name]()
        return value

    def stored(self, name: str) -> StoredTensor:
        reader, parts = self._readers[name], self._parts(name)
        num_bytes, kind_name = 0, ""
        for part in parts:
            if part in self._tensors:
                _, tensor = self._tensors[part]
                num_bytes += _num_bytes(part, tensor)
                kind_name = _kind(part, tensor)[0].name
        if reader.func == self._stored and len(reader.args) > 1:  # an expert of many
            num_bytes //= self._tensors[parts[0]][1].shape[0]
        return StoredTensor(kind_name, num_bytes)

    def shard(self, name: str) -> str | None:
        if len(self._files) == 1 or name not in self._readers:
            return None
        return next((self._tensors[part][0].path.name for part in self._parts(name) if part in self._tensors), None)

    def _parts(self, name: str) -> list[str]:
        """The tensors of the file that make up this one."""
        reader = self._readers[name]
        if reader.func == self._joined_kv_b:
            return [f"{reader.args[0]}.attn_{part}_b.weight" for part in "kv"]
        return [reader.args[0]]

    def release(self) -> None:
        for file in self._files:
            _drop(file, 0, len(file.data))

    def _warn_of_expanded(self) -> None:
        """Say once for each type of blocks that no kernel knows what it takes in memory."""
        stored, values = Counter[str](), Counter[str]()
        for name, (_, tensor) in self._tensors.items():
            kind, _, _ = _kind(name, tensor)
            if kind not in _PLAIN and kind.name.lower() not in FORMATS:
                values[kind.name] += math.prod(tensor.shape)
                stored[kind.name] += _num_bytes(name, tensor)
        for kind_name, size in stored.items():
            logger.warning(
                "%.3g GiB of weights are stored as %s, which no kernel multiplies with: expanded, they take %.3g GiB",
                size / 2**30,
                kind_name,
                values[kind_name] * _EXPANDED_SIZE / 2**30,
            )

    def _add(self, name: str) -> None:
        """Register how to read the Hugging Face tensors that one tensor of the file holds."""
        match = _LAYER_NAME.fullmatch(name)
        if match is None:
            self._readers[_TOP.get(name, name)] = functools.partial(self._stored, name)
            return
        layer, part, kind = match.groups()
        prefix = f"model.layers.{layer}"
        if experts := _EXPERTS.fullmatch(part):
            stored = next(iter(self._tensors[name][1].shape), 0)
            for expert in range(min(stored, self._num_experts + 1)):  # one surplus: Weights.finish reports it
                hf_name = f"{prefix}.mlp.experts.{expert}.{experts[1]}_proj.{kind}"
                self._readers[hf_name] = functools.partial(self._stored, name, expert)
        elif part == "attn_k_b":
            self._readers[f"{prefix}.self_attn.kv_b_proj.weight"] = functools.partial(self._joined_kv_b, f"blk.{layer}")
        elif part == "exp_probs_b":
            self._readers[f"{prefix}.mlp.gate.e_score_correction_bias"] = functools.partial(self._stored, name)
        elif part in self._heads and self._is_llama:
            hf_name = f"{prefix}.{_IN_LAYER[part]}.{kind}"
            self._readers[hf_name] = functools.partial(self._half_split, name, self._heads[part])
        elif part != "attn_v_b":  # read with attn_k_b
            hf_name = f"{prefix}.{_IN_LAYER[part]}.{kind}" if part in _IN_LAYER else name
            self._readers[hf_name] = functools.partial(self._stored, name)

    def _half_split(self, name: str, num_heads: int) -> torch.Tensor | BlockWeight:
        value = self._stored(name)
        if value.shape[0] % (2 * num_heads):
            return value  # misshapen: Weights.take reports it
        order = torch.arange(value.shape[0]).view(num_heads, -1, 2).transpose(1, 2).flatten()
        return value.rows(order) if isinstance(value, BlockWeight) else value[order]

    def _joined_kv_b(self, prefix: str) -> torch.Tensor:
        keys_NCD = self._floats(f"{prefix}.attn_k_b.weight")
        values_NVC = self._floats(f"{prefix}.attn_v_b.weight")
        if not (keys_NCD.ndim == values_NVC.ndim == 3 and keys_NCD.shape[:2] == values_NVC.shape[::2]):
            raise ModelError(
                f"{prefix}.attn_k_b.weight is {list(keys_NCD.shape)} and {prefix}.attn_v_b.weight "
                f"{list(values_NVC.shape)}; expected [heads, latent, key] and [heads, value, latent]"
            )
        return torch.cat([keys_NCD.transpose(1, 2), values_NVC], dim=1).flatten(0, 1)

    def _floats(self, name: str) -> torch.Tensor:
        """A tensor in its stored dtype, or in fp32 if it is quantised."""
        value = self._stored(name)
        return value.dequantize(torch.float32) if isinstance(value, BlockWeight) else value

    def _stored(self, name: str, index: int | None = None) -> torch.Tensor | BlockWeight:
        """A tensor, or one entry of its first dimension: in its stored dtype, in its blocks, or else in fp32."""
        if name not in self._tensors:
            raise ModelError(f"{self.path} lacks {name}")
        file, tensor = self._tensors[name]
        kind, values_per_block, bytes_per_block = _kind(name, tensor)
        shape = tensor.shape if index is None else tensor.shape[1:]
        num_bytes = math.prod(shape) // values_per_block * bytes_per_block
        offset = tensor.offset + (index or 0) * num_bytes
        raw = mapped_bytes(file.data, offset, num_bytes)
        if len(shape) == 2 and (form := FORMATS.get(kind.name.lower())) is not None:
            self._mapped.append((file, offset, num_bytes))
            return BlockWeight(raw.view(shape[0], -1), form, shape[1], Input.DYNAMIC)
        try:
            if kind in _PLAIN:
                return raw.clone().view(_PLAIN[kind]).reshape(shape)
            values = dequantize(raw.numpy().reshape(*shape[:-1], -1), kind)
        except NotImplementedError:
            raise ModelError(f"{name} is stored as {kind.name}, which the gguf package cannot read back") from None
        finally:
            _drop(file, offset, num_bytes)
        return torch.from_numpy(np.require(values, np.float32, "W")).reshape(shape)


def _drop(file: GGUFFile, offset: int, num_bytes: int) -> None:
    """Release the pages of a part of the file, and those around it that the system mapped with them."""
    first, last = max(0, offset - _MAPPED_AROUND), min(offset + num_bytes + _MAPPED_AROUND, len(file.data))
    drop_pages(mapped_bytes(file.data, first, last - first).data_ptr(), last - first)


def _kind(name: str, tensor: GGUFTensor) -> tuple[GGMLQuantizationType, int, int]:
    """A tensor's type, and the values and bytes of its blocks."""
    try:
        kind = GGMLQuantizationType(tensor.ggml_type)
        return kind, *GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ModelError(f"{name} has GGML type {tensor.ggml_type}, which the gguf package does not know") from None


def _num_bytes(name: str, tensor: GGUFTensor) -> int:
    """The bytes that a tensor takes in the file."""
    kind, values_per_block, bytes_per_block = _kind(name, tensor)
    columns = tensor.shape[-1] if tensor.shape else 1
    if columns % values_per_block:
        raise ModelError(f"{name} has rows of {columns} values, which are no whole blocks of {kind.name}")
    return math.prod(tensor.shape) // values_per_block * bytes_per_block


def _check_places(file: GGUFFile) -> None:
    """Refuse tensors that are empty, or run past the file's end or into each other."""
    last, last_end = "", 0
    for name, tensor in sorted(file.tensors.items(), key=lambda entry: entry[1].offset):
        end = tensor.offset + _num_bytes(name, tensor)
        if end == tensor.offset:
            raise ModelError(f"{name} has no values: its shape is {list(tensor.shape)}")
        if end > len(file.data):
            raise ModelError(f"{file.path} is cut short: {name}, of shape {list(tensor.shape)}, runs past its end")
        if tensor.offset < last_end:
            raise ModelError(f"{file.path} is damaged: {name} begins before {last} ends")
        last, last_end = name, end

"""A checkpoint's tensors, handed out by name, with an account of what is missing, misshapen or left over.

Sources: Hugging Face folders of safetensors (sharded or not) and GGUF files. Both are memory-mapped and read one
tensor at a time, so a load needs the model's memory once. Pickled weights are refused: they could run code.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from engine.errors import ModelError
from engine.models.config import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from engine.loading.gguf_file import GGUFFile
    from engine.models.config import ModelConfig

_SHOWN = 10  # names listed in one error
_FP8_BLOCK = 128
_BUFFERS = (".rotary_emb.inv_freq",)  # old checkpoints carry these; they follow from the config


class TensorSource(Protocol):
    """Tensors by their Hugging Face names."""

    def names(self) -> set[str]:
        """All of them."""

    def read(self, name: str) -> torch.Tensor:
        """One, on the CPU, in the number type it is stored in (fp32 for quantised blocks)."""


class Weights:
    """Hands out a source's tensors on a device, in one dtype, and checks that all were asked for."""

    def __init__(self, source: TensorSource, device: torch.device, dtype: torch.dtype, *, progress: bool) -> None:
        self.device = device
        self._source, self._dtype = source, dtype
        self._left = {name for name in source.names() if not name.endswith(_BUFFERS)}
        self._missing: list[str] = []
        self._misshapen: list[str] = []
        self._bar = tqdm(
            total=len(self._left),
            desc="loading weights",
            unit="tensor",
            disable=not progress,
            file=sys.stderr,
            leave=False,
        )

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor of this name; if it is missing or misshapen, zeros, and `finish` will raise."""
        if name not in self._left:
            self._missing.append(name)
            return torch.zeros(shape, dtype=dtype or self._dtype, device=self.device)
        self._left.remove(name)
        self._bar.update()
        tensor = self._source.read(name)
        if (scales := f"{name}_scale_inv") in self._left:
            self._left.remove(scales)
            tensor = dequantize_fp8(tensor, self._source.read(scales))
        if tuple(tensor.shape) != shape:
            self._misshapen.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
            return torch.zeros(shape, dtype=dtype or self._dtype, device=self.device)
        return tensor.to(self.device, dtype or self._dtype)

    def ignore(self, name: str) -> None:
        """Say that a tensor, if there, is not needed."""
        self._left.discard(name)

    def ignore_below(self, prefix: str) -> None:
        """The same for all tensors whose names begin so."""
        self._left = {name for name in self._left if not name.startswith(prefix)}

    def finish(self) -> None:
        """Check the account.

        Raises:
            ModelError: naming the tensors that were missing, misshapen or never asked for.
        """
        self._bar.close()
        problems = [
            f"{label}: {', '.join(sorted(names)[:_SHOWN])}"
            + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            for label, names in (("missing", self._missing), ("misshapen", self._misshapen), ("unexpected", self._left))
            if names
        ]
        if problems:
            raise ModelError("the checkpoint's tensors do not fit its config; " + "; ".join(problems))


def dequantize_fp8(weight_MN: torch.Tensor, scale_inv: torch.Tensor) -> torch.Tensor:
    """DeepSeek-V3's block-wise FP8 (e4m3, one fp32 factor for each 128 x 128 block, ragged at the ends) as fp32."""
    rows, columns = ((torch.arange(size) // _FP8_BLOCK) for size in weight_MN.shape)
    if tuple(scale_inv.shape) != tuple(-(-size // _FP8_BLOCK) for size in weight_MN.shape):
        raise ModelError(f"FP8 scales are {list(scale_inv.shape)} for a weight of {list(weight_MN.shape)}")
    return weight_MN.float() * scale_inv.float().index_select(0, rows).index_select(1, columns)


class SafetensorsSource:
    """A Hugging Face folder: model.safetensors.index.json and its shards, or single .safetensors files."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.exists():
            files = sorted({folder / shard for shard in read_json(index).get("weight_map", {}).values()})
        else:
            files = sorted(folder.glob("*.safetensors"))
        if absent := [file.name for file in files if not file.exists()]:
            raise ModelError(f"{folder} lacks shards that its index names: {', '.join(absent[:_SHOWN])}")
        if not files:
            pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
            hint = f" ({pickled[0]} is a pickle, which could run code and is never read)" if pickled else ""
            raise ModelError(f"{folder} has no .safetensors files{hint}")
        self._where = {}
        self._files = contextlib.ExitStack()
        for file in files:
            try:
                handle = self._files.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file} cannot be read: {error}") from None
            self._where.update(dict.fromkeys(handle.keys(), handle))

    def names(self) -> set[str]:
        return set(self._where)

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._where[name].get_tensor(name)
        return tensor


class GGUFSource:
    """A GGUF file of architecture `llama`, under Hugging Face names, quantised blocks made into numbers."""

    _TOP: ClassVar = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "rope_freqs.weight": "rope_freqs.weight",
    }
    _IN_LAYER: ClassVar = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file = file
        # Converters to GGUF pair rotary dimensions as neighbours; Hugging Face splits a head in halves.
        self._heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        self._stored = {self._hf_name(name): name for name in file.tensors}

    def names(self) -> set[str]:
        return set(self._stored)

    def read(self, name: str) -> torch.Tensor:
        tensor = self._file.tensors[self._stored[name]]
        kind = _ggml_type(name, tensor.ggml_type)
        numbers_per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
        num_bytes = int(np.prod(tensor.shape)) // numbers_per_block * bytes_per_block
        if tensor.offset + num_bytes > len(self._file.data):
            raise ModelError(f"{self._file.path} is cut short: {self._stored[name]} runs past its end")
        raw = np.frombuffer(self._file.data, dtype=np.uint8, count=num_bytes, offset=tensor.offset)
        numbers = dequantize(raw.reshape(*tensor.shape[:-1], -1), kind)
        value = torch.from_numpy(np.require(numbers, np.float32, "W")).reshape(tensor.shape)
        heads = self._heads.get(name.split(".")[-2])
        if heads is None:
            return value
        return value.reshape(heads, -1, 2, value.shape[-1]).transpose(1, 2).reshape(value.shape)

    def _hf_name(self, name: str) -> str:
        if name in self._TOP:
            return self._TOP[name]
        prefix, _, rest = name.partition(".")
        layer, _, rest = rest.partition(".")
        part, _, kind = rest.partition(".")
        if prefix == "blk" and part in self._IN_LAYER:
            return f"model.layers.{layer}.{self._IN_LAYER[part]}.{kind}"
        return name


def _ggml_type(name: str, number: int) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        raise ModelError(f"tensor {name} has GGML type {number}, which the gguf package does not know") from None

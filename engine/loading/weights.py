"""A checkpoint's tensors, handed out by name, with an account of what is missing, misshapen or left over.

Sources: Hugging Face folders of safetensors (sharded or not) and GGUF files. Both are memory-mapped and read one
tensor at a time, so a load needs the model's memory once. Pickled weights are refused: they could run code.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from engine.errors import ModelError
from engine.memory import Trimmer, drop_pages
from engine.models.config import read_json

if TYPE_CHECKING:
    from pathlib import Path


_SHOWN = 10  # names listed in one error
_BUFFERS = (".rotary_emb.inv_freq",)  # old checkpoints carry these; they follow from the config


class TensorSource(Protocol):
    """Tensors by their Hugging Face names."""

    def names(self) -> set[str]:
        """All of them."""

    def read(self, name: str) -> torch.Tensor:
        """One, on the CPU, in the number type it is stored in (fp32 for quantised blocks)."""


class Weights:
    """Hands out a source's tensors on a device, in one dtype, and checks that all were asked for."""

    def __init__(
        self,
        source: TensorSource,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8_block: tuple[int, int],
        progress: bool,
    ) -> None:
        self.device = device
        self._source, self._dtype, self._fp8_block = source, dtype, fp8_block
        self._left = {name for name in source.names() if not name.endswith(_BUFFERS)}
        self._missing: list[str] = []
        self._misshapen: list[str] = []
        self._trimmer = Trimmer()
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
        self._trimmer.read(tensor.nbytes)
        if (scales := f"{name}_scale_inv") in self._left:
            self._left.remove(scales)
            tensor = dequantize_fp8(tensor, self._source.read(scales), self._fp8_block)
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
        self._trimmer.trim()
        problems = [
            f"{label}: {', '.join(sorted(names)[:_SHOWN])}"
            + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            for label, names in (("missing", self._missing), ("misshapen", self._misshapen), ("unexpected", self._left))
            if names
        ]
        if problems:
            raise ModelError("the checkpoint's tensors do not fit its config; " + "; ".join(problems))


def dequantize_fp8(weight_MN: torch.Tensor, scale_inv: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """DeepSeek-V3's block-wise FP8 as fp32: e4m3, one factor for each block, the last ones ragged.

    Raises:
        ModelError: the factors do not fit the weight.
    """
    expected = tuple(-(-size // length) for size, length in zip(weight_MN.shape, block, strict=True))
    if tuple(scale_inv.shape) != expected:
        raise ModelError(
            f"FP8 factors are {list(scale_inv.shape)}; a {list(weight_MN.shape)} weight has {list(expected)}"
        )
    (num_rows, num_columns), (height, width) = weight_MN.shape, block
    factors = scale_inv.float().repeat_interleave(height, 0)[:num_rows].repeat_interleave(width, 1)[:, :num_columns]
    return weight_MN.float() * factors


def quantize_fp8(weight_MN: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse: e4m3 numbers, and the fp32 factor of each block, which brings its largest to e4m3's 448."""
    (num_rows, num_columns), (height, width) = weight_MN.shape, block
    padded = F.pad(weight_MN.abs().float(), (0, -num_columns % width, 0, -num_rows % height))
    largest = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width)).amax(dim=(1, 3))
    scale_inv = largest.clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
    factors = scale_inv.repeat_interleave(height, 0)[:num_rows].repeat_interleave(width, 1)[:, :num_columns]
    return (weight_MN.float() / factors).to(torch.float8_e4m3fn), scale_inv


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
        mapped: torch.Tensor = self._where[name].get_tensor(name)
        tensor = mapped.clone()  # owned: a file that changes under a running server must not reach it
        drop_pages(mapped.data_ptr(), mapped.nbytes)
        return tensor

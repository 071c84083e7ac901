"""A checkpoint's tensors, handed out by name, with an account of what is missing, misshapen or left over.

Sources: Hugging Face folders of safetensors (sharded or not) and GGUF files. Both are memory-mapped and read one
tensor at a time, so a load needs the model's memory once. Pickled weights are refused: they could run code.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from engine.errors import ModelError
from engine.memory import Trimmer, drop_pages
from engine.models.config_keys import read_json
from kernels.linear_int8 import Input, QuantizedWeight, StaticInput, quantize_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.models.int8_scheme import Int8Scheme

_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_SHOWN = 10  # names listed in one error
_ENOUGH = 1000  # faults after which no more are looked for
_LARGE = 1 << 28  # numbers that are not allocated only to look for more faults
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BUFFERS = (".rotary_emb.inv_freq",)  # old checkpoints carry these; they follow from the config


class TensorSource(Protocol):
    """Tensors by their Hugging Face names."""

    def names(self) -> set[str]:
        """All of them."""

    def read(self, name: str) -> torch.Tensor:
        """One, on the CPU, in the number type it is stored in (fp32 for quantised blocks)."""


class Weights:
    """Hands out a source's tensors on a device, in one dtype, and checks that all were asked for.

    Weights of linear layers can be int8 instead: stored so (`int8`), or made so here (`quantizes`).
    """

    def __init__(
        self,
        source: TensorSource,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8_block: tuple[int, int],
        progress: bool,
        int8: Int8Scheme | None = None,
        quantizes: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Take stock of a source.

        Args:
            source: where tensors come from.
            device: where they go.
            dtype: of those that are not int8.
            fp8_block: rows and columns that share a factor in FP8 weights.
            progress: show a bar.
            int8: which layers are stored in int8.
            quantizes: of a linear layer's name, whether a weight that is not int8 yet becomes it, its input dynamic.
        """
        self.device, self.dtype = device, dtype
        self._source, self._fp8_block = source, fp8_block
        self._int8, self._quantizes = int8, quantizes
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
        """The tensor of this name as numbers; if it is missing or misshapen, zeros, and `finish` will raise."""
        stored = self._read(name, shape)
        if stored is None:
            return self._instead(shape, dtype)
        if isinstance(stored, QuantizedWeight):
            stored = stored.dequantize(dtype or self.dtype)
        return stored.to(self.device, dtype or self.dtype)

    def take_linear(self, layer: str, shape: tuple[int, int]) -> torch.Tensor | QuantizedWeight:
        """The weight [O, I] of a linear layer: int8 if it is stored so or is to become so, else like `take`."""
        stored = self._read(f"{layer}.weight", shape)
        if stored is None:
            return self._instead(shape, None)
        if isinstance(stored, QuantizedWeight):
            return QuantizedWeight(stored.values_OI.to(self.device), stored.scale_O.to(self.device), stored.input)
        return self.as_linear(layer, stored)

    @property
    def linear_size(self) -> int:
        """Bytes of a value in most linear layers' weights."""
        return 1 if self._int8 is not None or self._quantizes("lm_head") else self.dtype.itemsize

    def as_linear(self, layer: str, weight_OI: torch.Tensor) -> torch.Tensor | QuantizedWeight:
        """The same of a weight that is there already, such as an embedding that is the head too."""
        if self._quantizes(layer):
            return quantize_weight(weight_OI.to(self.device), Input.DYNAMIC)
        return weight_OI.to(self.device, self.dtype)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | QuantizedWeight | None:
        """What is stored, FP8 made into numbers; None if it is at fault, which is noted."""
        tensor = self._pull(name, shape)
        if tensor is None:
            self._left.discard(f"{name}_scale_inv")
            return None
        if tensor.dtype == torch.float8_e4m3fn:
            factors = self._pull(f"{name}_scale_inv", fp8_factors_shape(shape, self._fp8_block))
            return None if factors is None else dequantize_fp8(tensor, factors, self._fp8_block)
        if tensor.dtype == torch.int8 and self._int8 is not None and name.endswith(".weight"):
            return self._read_int8(name.removesuffix(".weight"), tensor)
        if tensor.dtype not in _NUMBERS:
            self._misshapen.append(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}")
            return None
        return tensor

    def _read_int8(self, layer: str, values_OI: torch.Tensor) -> QuantizedWeight | None:
        assert self._int8 is not None
        kind = self._int8.input_kind(layer)
        scale_O1 = self._pull(f"{layer}.weight_scale", (len(values_OI), 1))
        if kind is None:
            self._misshapen.append(f"{layer}.weight is int8, but in no group of quantization_config")
        if scale_O1 is None or kind is None:
            return None
        input_: Input | StaticInput = Input.FLOAT if kind == "float" else Input.DYNAMIC
        if kind == "static":
            scale, zero = self._pull(f"{layer}.input_scale", (1,)), 0
            if f"{layer}.input_zero_point" in self._left:
                stored = self._pull(f"{layer}.input_zero_point", (1,))
                zero = 0 if stored is None else int(stored)
            if scale is None:
                return None
            if not -128 <= zero <= 127 or not 0 < float(scale) < math.inf:
                self._misshapen.append(f"{layer}.input_scale and input_zero_point are {float(scale)} and {zero}")
                return None
            input_ = StaticInput(float(scale), zero + 128)  # stored for s8
        return QuantizedWeight(values_OI, scale_O1[:, 0].float(), input_)

    def _pull(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """A tensor of the source as it is stored, if it is there and has this shape (or is a number where one is)."""
        if name not in self._left:
            self._missing.append(name)
            return None
        self._left.remove(name)
        self._bar.update()
        tensor = self._source.read(name)
        self._trimmer.read(tensor.nbytes)
        if shape == (1,) and tensor.dim() == 0:
            tensor = tensor[None]
        if tuple(tensor.shape) != shape:
            self._misshapen.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
            return None
        return tensor

    def _instead(self, shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.Tensor:
        """Zeros, so that all that is wrong can be named at the end; unless that is much already, or they are large."""
        if len(self._missing) + len(self._misshapen) > _ENOUGH or math.prod(shape) > _LARGE:
            self._left.clear()
            self.finish()
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def ignore(self, name: str) -> None:
        """Say that a tensor, if there, is not needed."""
        self._left.discard(name)

    def ignore_layers(self, first: int, count: int) -> None:
        """The same for all tensors of so many layers."""
        layers = {name: _LAYER.match(name) for name in self._left}
        self._left -= {name for name, found in layers.items() if found and first <= int(found[1]) < first + count}

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


def fp8_factors_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """How many blocks a weight has, ragged ones included; one factor each."""
    return tuple(-(-size // length) for size, length in zip(shape, block, strict=False))


def dequantize_fp8(weight_MN: torch.Tensor, scale_inv: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """DeepSeek-V3's block-wise FP8 as fp32: e4m3, one factor for each block, the last ones ragged."""
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


def _shards(folder: Path, weight_map: Any) -> list[Path]:
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder}/model.safetensors.index.json has no weight_map")
    names = set(map(str, weight_map.values()))
    if outside := [name for name in sorted(names) if Path(name).name != name]:
        raise ModelError(f"{folder}/model.safetensors.index.json names a shard outside the folder: {outside[0]}")
    return sorted(folder / name for name in names)


class SafetensorsSource:
    """A Hugging Face folder: model.safetensors.index.json and its shards, or single .safetensors files."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.exists():
            files = _shards(folder, read_json(index).get("weight_map"))
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

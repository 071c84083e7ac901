"""The account of a checkpoint's tensors: hands them out by name, and lists the missing, misshapen and unused ones.

Tensors come from a TensorSource, one at a time, so that a load needs the model's memory once. The sources are
engine.loading.safetensors_source and engine.loading.gguf_source.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from tqdm import tqdm

from engine.errors import ModelError
from engine.loading import awq, compressed_int4, compressed_int8, fp4, fp8, gptq
from engine.loading.name_list import name_list
from engine.loading.stored_dtypes import E8M0, FLOATS
from engine.memory import Trimmer
from kernels.block_weight import BlockWeight
from kernels.linear_int8 import Input, QuantizedWeight, quantize_for_dynamic_inputs
from kernels.round_to_blocks import round_to_blocks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.models.fp8_scheme import FP8Scheme
    from engine.models.int8_scheme import Int8Scheme
    from engine.models.packed_scheme import PackedScheme

logger = logging.getLogger(__name__)

_TELL_EVERY = 5.0  # seconds between lines of a log
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_MAX_FAULTS = 1000  # loading stops at once after so many
_MAX_PLACEHOLDER = 1 << 28  # values; loading stops at once where a faulty tensor is larger
LoadFormat = Literal["int8", "q4_0", "q8_0"]  # what weights are made at load; blocks of kernels.block_weight
_READERS = {  # of layers in 4 bits, by their layout: a part of a layer's tensors' names, and what reads them
    "compressed-tensors": ("weight_packed", compressed_int4.read),
    "awq": ("qweight", awq.read),
    "gptq": ("qweight", gptq.read),
    "gptq_v2": ("qweight", gptq.read),
}
_OF_QUANTIZED = (".weight_packed", ".qweight", ".weight_scale")  # ends of names that a layer in floats has not
_BUFFERS = (".rotary_emb.inv_freq",)  # old checkpoints store this buffer; it is computed from the config


class StoredTensor(NamedTuple):
    """How a tensor lies in a checkpoint: safetensors' name of its dtype, or ggml's of its type; and its bytes."""

    kind: str
    num_bytes: int


class TensorSource(Protocol):
    """Tensors by their Hugging Face names, out of a folder or a file at `path`."""

    @property
    def path(self) -> Path:
        """The folder, or the file; of several parts the first."""

    def names(self) -> set[str]:
        """The names of all tensors."""

    def read(self, name: str) -> torch.Tensor | BlockWeight:
        """One tensor on the CPU, as it is stored; a GGUF file's blocks that no kernel knows as fp32.

        A BlockWeight may be a view of the file, whose pages leave memory when the next tensor is read.
        """

    def stored(self, name: str) -> StoredTensor:
        """How a tensor is stored; no tensor is read."""

    def shard(self, name: str) -> str | None:
        """The name of the file that has this tensor, if there are several."""

    def release(self) -> None:
        """Let go of memory that reading took, at the end of a load. What was handed out stays valid."""


class Weights:
    """Hands out a source's tensors on a device, in one dtype, and checks that the model took all of them.

    The weights of linear layers can be int8: stored as int8 (`int8`), or made so at load (`quantizes`). They can stay
    in the blocks that they are stored in (`keeps_blocks`), or be brought to blocks at load (`quantizes`).
    """

    def __init__(
        self,
        source: TensorSource,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8_block: tuple[int, int],
        progress: bool,
        tell_share: Callable[[float], None] = lambda _: None,
        int8: Int8Scheme | None = None,
        packed: PackedScheme | None = None,
        fp8_layers: FP8Scheme | None = None,
        quantizes: Callable[[str], LoadFormat | None] = lambda _: None,
        keeps_blocks: bool = False,
        block_input: Input | None = None,
    ) -> None:
        """List the source's tensors.

        All are handed out in `dtype`, except int8 weights and blocks that are kept. `fp8_block` is the rows and columns
        that share a scale in FP8 weights, unless `fp8_layers` says it of each. `int8` and `packed` say which layers are
        stored in int8 and in 4 bits, and `quantizes` to what the layer of this name is quantised at load, with dynamic
        inputs. `block_input` is the kind of input of blocks (None: as the checkpoint says), if their format has
        products of that kind. `tell_share` is called with the share of the tensors that is read.
        """
        self.device, self.dtype = device, dtype
        self._source, self._fp8_block, self._fp8_layers = source, fp8_block, fp8_layers
        self._int8, self._quantizes, self._tell_share = int8, quantizes, tell_share
        self._packed, self._keeps_blocks, self._block_input = packed, keeps_blocks, block_input
        self._linear_bytes = self._linear_values = self._int8_values = 0
        self._warnings: set[str] = set()
        self._unused = {name for name in source.names() if not name.endswith(_BUFFERS)}
        self._missing: list[str] = []
        self._misshapen: list[str] = []
        self._unusable: list[str] = []
        self._trimmer = Trimmer()
        self._num_tensors, self._told = len(self._unused), time.monotonic()
        bar = {"desc": "loading weights", "unit": "tensor", "file": sys.stderr, "leave": False}
        self._bar = tqdm(total=self._num_tensors, disable=not progress, **bar)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor of this name as floats; zeros if it is missing or misshapen, and `finish` raises later."""
        stored = self._read(name, shape)
        if stored is None:
            return self._placeholder(shape, dtype)
        if not isinstance(stored, torch.Tensor):
            stored = stored.dequantize(dtype or self.dtype)
        return stored.to(self.device, dtype or self.dtype)

    def take_rows(self, name: str, shape: tuple[int, int]) -> torch.Tensor | BlockWeight:
        """A table of which rows are looked up: in the blocks of the file, if blocks are kept, else as `take`."""
        stored = self._read(name, shape)
        if stored is None:
            return self._placeholder(shape, None)
        if isinstance(stored, BlockWeight) and self._keeps_blocks:
            return stored
        return (stored if isinstance(stored, torch.Tensor) else stored.dequantize(self.dtype)).to(
            self.device, self.dtype
        )

    def take_linear(self, layer: str, shape: tuple[int, int]) -> torch.Tensor | QuantizedWeight | BlockWeight:
        """The weight [O, I] of a linear layer: in int8 or in blocks if it is to be so, else as `take` returns it."""
        return as_served(self.take_part(layer, shape))

    def take_part(self, layer: str, shape: tuple[int, int]) -> torch.Tensor | QuantizedWeight | BlockWeight:
        """As `take_linear`, but what is stored in int8 as it is stored: `as_served` is for what is stacked of it."""
        stored = self._read(f"{layer}.weight", shape)
        return self._placeholder(shape, None) if stored is None else self.as_linear(layer, stored)

    def as_linear(
        self, layer: str, stored: torch.Tensor | QuantizedWeight | BlockWeight
    ) -> torch.Tensor | QuantizedWeight | BlockWeight:
        """A weight that was read before (a tied embedding), as the weight of this linear layer."""
        weight = self._made_linear(layer, stored)
        self._linear_values += weight.shape.numel()
        self._linear_bytes += weight.nbytes
        if not isinstance(weight, torch.Tensor) and weight.input is not Input.FLOAT:
            self._int8_values += weight.shape.numel()
        return weight

    @property
    def linear_size(self) -> float:
        """Bytes of one value in the weights of linear layers: the mean over those that were taken so far."""
        return self._linear_bytes / self._linear_values if self._linear_values else self.dtype.itemsize

    @property
    def int8_share(self) -> float:
        """The share of these values that are multiplied with inputs in int8."""
        return self._int8_values / self._linear_values if self._linear_values else 0.0

    def _made_linear(
        self, layer: str, stored: torch.Tensor | QuantizedWeight | BlockWeight
    ) -> torch.Tensor | QuantizedWeight | BlockWeight:
        if isinstance(stored, QuantizedWeight):
            return QuantizedWeight(stored.values_OI.to(self.device), stored.scale_O.to(self.device), stored.input)
        format_ = self._quantizes(layer)
        if isinstance(stored, BlockWeight):
            if self._keeps_blocks and format_ is None:
                return self._with_input(stored)
            _refuse_few_bits(layer, stored, format_)
            stored = stored.dequantize(self.dtype)
        if format_ == "int8":
            return quantize_for_dynamic_inputs(stored.to(self.device))
        if format_ is not None:
            made = _rounded(layer, stored, format_)
            return self._with_input(made) if self._keeps_blocks else made.dequantize(self.dtype).to(self.device)
        return stored.to(self.device, self.dtype)

    def _with_input(self, weight: BlockWeight) -> BlockWeight:
        """The weight with the kind of input that is wanted of blocks, if its format has products of that kind."""
        if self._block_input is None or not weight.format.group:
            return weight
        return replace(weight, input=self._block_input)

    def ignore(self, name: str) -> None:
        """Do not count a tensor as unused."""
        self._unused.discard(name)

    def ignore_layers(self, first: int, count: int) -> None:
        """Do not count the tensors of `count` layers, from layer `first` on, as unused."""
        layers = {name: _LAYER.match(name) for name in self._unused}
        self._unused -= {name for name, found in layers.items() if found and first <= int(found[1]) < first + count}

    def finish(self) -> None:
        """Check the account.

        Raises:
            ModelError: tensors were missing, misshapen, unusable or never taken; the text names them.
        """
        self._bar.close()
        self._source.release()
        self._trimmer.trim()
        faults = {
            "missing": self._missing,
            "misshapen": self._misshapen,
            "unusable": self._unusable,
            "unexpected": self._unused,
        }
        problems = [f"{label}: {name_list(names)}" for label, names in faults.items() if names]
        if quantized := [name for name in self._unused if name.endswith(_OF_QUANTIZED)]:
            problems.append(f"no quantization_config in config.json says how {min(quantized)} is to be read")
        if problems:
            raise ModelError(f"the tensors of {self._source.path} do not fit its config; " + "; ".join(problems))

    def holds(self, name: str) -> bool:
        """Whether there is a tensor of this name that was not taken yet."""
        return name in self._unused

    def take_stored(self, name: str, *shapes: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> torch.Tensor | None:
        """A tensor as it is stored; None if it is missing or has none of the shapes or dtypes, which is noted."""
        stored = self._read_stored(name, *shapes)
        if isinstance(stored, BlockWeight):
            stored = stored.dequantize(torch.float32)
        if stored is not None and stored.dtype not in dtypes:
            expected = " or ".join(map(_dtype_name, dtypes))
            self.fault(name, f"is stored as {_dtype_name(stored.dtype)}, expected {expected}")
            return None
        return stored

    def take_scales(
        self, name: str, *shapes: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS
    ) -> torch.Tensor | None:
        """As `take_stored`, for scales: uint8 is E8M0, and one that is infinite or no number is noted as a fault."""
        stored = self.take_stored(name, *shapes, dtypes=dtypes)
        if stored is None:
            return None
        scales = stored.view(torch.float8_e8m0fnu) if stored.dtype == torch.uint8 else stored
        if not scales.float().isfinite().all():
            self.fault(name, "has scales that are infinite or no numbers")
            return None
        return scales

    def fault(self, name: str, why: str) -> None:
        """Note that the tensor of this name cannot be used; `finish` raises later."""
        self._unusable.append(self._located(name, why))

    def _located(self, name: str, why: str) -> str:
        shard = self._source.shard(name)
        return f"{name} {why}" + (f" (in {shard})" if shard else "")

    def warn_once(self, text: str) -> None:
        """Log a warning, unless this load did so before."""
        if text not in self._warnings:
            self._warnings.add(text)
            logger.warning("%s", text)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | QuantizedWeight | BlockWeight | None:
        """A tensor of the model, out of what is stored of it; None if that is faulty, and the fault is noted."""
        stored = self._assembled(name, shape)
        if isinstance(stored, BlockWeight) and not stored.has_usable_scales():
            self.fault(name, "has scales that are infinite, no numbers or above 2^105")
            return None
        return stored

    def _assembled(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | QuantizedWeight | BlockWeight | None:
        layer = name.removesuffix(".weight")
        if self._packed is not None and len(shape) == 2:
            part, read = _READERS[self._packed.layout]
            if self.holds(f"{layer}.{part}"):
                return read(self, layer, (shape[0], shape[1]), self._packed)
        scales_name = self._scales_name(name)
        halved = (shape[0], shape[1] // 2) if len(shape) == 2 and self.holds(scales_name) else shape  # 2 values a byte
        tensor = self._read_stored(name, shape, halved)
        if tensor is None:
            self._unused.discard(scales_name)
            return None
        if isinstance(tensor, BlockWeight):
            return tensor
        if tuple(tensor.shape) != shape and tensor.dtype in (torch.int8, torch.uint8):
            scales = self.take_scales(scales_name, fp4.scales_shape(shape), dtypes=E8M0)
            return None if scales is None else fp4.to_blocks(tensor, scales, Input.DYNAMIC)
        if tensor.dtype == torch.float8_e4m3fn and tuple(tensor.shape) == shape:
            return self._read_fp8(layer, scales_name, tensor)
        if tensor.dtype == torch.int8 and self._int8 is not None and name != layer:
            return compressed_int8.read(self, layer, tensor, self._int8)
        if tensor.dtype not in FLOATS:
            self.fault(name, f"is stored as {_dtype_name(tensor.dtype)}")
        elif tuple(tensor.shape) != shape:
            self._misshapen.append(self._located(name, f"is {list(tensor.shape)}, expected {list(shape)}"))
        else:
            return tensor
        return None

    def _scales_name(self, name: str) -> str:
        """DeepSeek-V3 calls the scales of a weight weight_scale_inv, V4 scale, compressed-tensors weight_scale."""
        if self._fp8_layers is not None:
            return f"{name}_scale"
        of_v4 = f"{name.removesuffix('.weight')}.scale"
        return of_v4 if self.holds(of_v4) else f"{name}_scale_inv"

    def _read_fp8(self, layer: str, scales_name: str, weight_MN: torch.Tensor) -> torch.Tensor | BlockWeight | None:
        block: tuple[int, int] | None = self._fp8_block
        if self._fp8_layers is not None:
            self.ignore(f"{layer}.input_scale")  # inputs stay in floats
            block = self._fp8_layers.block_of(layer, (weight_MN.shape[0], weight_MN.shape[1]))
        if block is None:
            self.fault(f"{layer}.weight", "is FP8, but in no group of quantization_config")
            return None
        return fp8.read(self, scales_name, weight_MN, block, keeps_blocks=self._keeps_blocks)

    def _read_stored(self, name: str, *shapes: tuple[int, ...]) -> torch.Tensor | BlockWeight | None:
        """A tensor as it is stored; None if it is missing or misshapen. A scalar counts as shape (1,)."""
        if name not in self._unused:
            self._missing.append(name)
            return None
        self._unused.remove(name)
        self._bar.update()
        self._tell_share(1 - len(self._unused) / self._num_tensors)
        if self._bar.disable and time.monotonic() - self._told > _TELL_EVERY:  # a log instead of a terminal
            self._told = time.monotonic()
            logger.info("loading weights: %.0f%%", 100 - 100 * len(self._unused) / self._num_tensors)
        tensor = self._source.read(name)
        self._trimmer.count(tensor.nbytes)
        if (1,) in shapes and isinstance(tensor, torch.Tensor) and tensor.dim() == 0:
            tensor = tensor[None]
        if tuple(tensor.shape) not in shapes:
            self._misshapen.append(self._located(name, f"is {list(tensor.shape)}, expected {list(shapes[0])}"))
            return None
        return tensor

    def _placeholder(self, shape: tuple[int, ...], dtype: torch.dtype | None) -> torch.Tensor:
        """Zeros in place of a faulty tensor, so that `finish` can name all faults.

        Loading ends here after too many faults, or where the zeros would take much memory.
        """
        if (
            len(self._missing) + len(self._misshapen) + len(self._unusable) > _MAX_FAULTS
            or math.prod(shape) > _MAX_PLACEHOLDER
        ):
            self._unused.clear()
            self.finish()
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_served(
    weight: torch.Tensor | QuantizedWeight | BlockWeight,
) -> torch.Tensor | QuantizedWeight | BlockWeight:
    """A weight that was stored in int8 for dynamic inputs, rotated; another as it is."""
    if isinstance(weight, QuantizedWeight) and weight.input is Input.DYNAMIC and weight.rotation == 1:
        return quantize_for_dynamic_inputs(weight)
    return weight


def _rounded(layer: str, weight_OI: torch.Tensor, format_: LoadFormat) -> BlockWeight:
    try:
        return round_to_blocks(weight_OI, format_)
    except ValueError as error:
        raise ModelError(f"{layer}.weight cannot be quantised: {error}") from None


def _refuse_few_bits(layer: str, stored: BlockWeight, format_: LoadFormat | None) -> None:
    """Refuse to make blocks of 4 bits of blocks that are hardly larger."""
    if format_ == "q4_0" and stored.format.bytes < stored.format.values:
        raise ModelError(
            f"{layer} is stored in blocks of {stored.format.name} already; --quantization auto computes with them, "
            "int4 is for weights in floats or 8 bits"
        )

"""Weights that stay in packed blocks: the formats, and a weight in one of them.

A weight [O, I] is O rows of bytes, and a row is a sequence of blocks that hold the same number of values each. GGUF's
tensors are stored so; engine.loading brings other checkpoints to one of these formats. `dequantize` of a format defines
its values (those of ggml's formats: the gguf package); native products are in kernels.block_linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kernels.quantized_weight import Input

_VALUES_AT_ONCE = 1 << 22
_MAX_SCALE = 2.0**105  # above it sums on their way are beyond fp32; no weight is so large


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A block's layout.

    Attributes:
        values: per block.
        bytes: per block.
        group: inputs that share a scale where a product makes them int8; 0 if products take inputs in floats only.
        dequantize: uint8 [..., bytes] -> fp32 [..., values].
        scales: uint8 [..., bytes] -> a block's scales and minima in floats, [..., number of them]; of a K-quant those
            that multiply the inner ones.
    """

    name: str
    values: int
    bytes: int
    group: int
    dequantize: Callable[[torch.Tensor], torch.Tensor]
    scales: Callable[[torch.Tensor], torch.Tensor]

    def num_blocks(self, in_size: int) -> int:
        """Blocks in a row of `in_size` values."""
        return -(-in_size // self.values)


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A weight in rows of blocks.

    Attributes:
        rows_OB: uint8 [O, blocks of a row * bytes of a block], contiguous. May be a view of a file that is mapped to be
            read only.
        format: of the blocks.
        in_size: values in a row. The last block may hold more; these are 0.
        input: DYNAMIC makes inputs int8, with a scale for each `format.group` of them; FLOAT leaves them in floats.
    """

    rows_OB: torch.Tensor
    format: BlockFormat
    in_size: int
    input: Input

    def __post_init__(self) -> None:
        assert self.rows_OB.dtype is torch.uint8, self.rows_OB.dtype
        assert self.format.group or self.input is Input.FLOAT, self.format.name
        assert self.rows_OB.shape[1] == self.format.num_blocks(self.in_size) * self.format.bytes, self.rows_OB.shape

    @property
    def shape(self) -> torch.Size:
        """[O, I]."""
        return torch.Size((len(self.rows_OB), self.in_size))

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows_OB.nbytes

    def rows(self, order: torch.Tensor) -> BlockWeight:
        """A copy of these rows, in this order."""
        return replace(self, rows_OB=self.rows_OB[order])

    def has_usable_scales(self) -> bool:
        """Whether products can be computed: no scale is NaN, infinite or above 2^105. Reads the scales alone."""
        scales = self.format.scales(self.rows_OB.unflatten(1, (-1, self.format.bytes)))
        low, high = map(float, scales.aminmax())  # NaN if one is NaN
        return -low <= _MAX_SCALE and high <= _MAX_SCALE

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in floats, [O, I]; computed in slices, to bound the temporary memory."""
        values_OI = torch.empty(self.shape, dtype=dtype)
        step = max(1, _VALUES_AT_ONCE // max(1, self.in_size))
        for first in range(0, len(values_OI), step):
            blocks = self.rows_OB[first : first + step].unflatten(1, (-1, self.format.bytes))
            values_OI[first : first + step] = self.format.dequantize(blocks).flatten(1)[:, : self.in_size]
        return values_OI


@dataclass(frozen=True, slots=True)
class MixedWeight:
    """Weights that are multiplied with the same input, in several formats: the rows of one below those of another."""

    parts: tuple[BlockWeight, ...]

    @property
    def shape(self) -> torch.Size:
        """[O, I] of all parts."""
        return torch.Size((sum(len(part.rows_OB) for part in self.parts), self.parts[0].in_size))

    def rows(self, order: torch.Tensor) -> MixedWeight:
        """A copy of these rows, in this order; rows of one part that follow each other stay one part."""
        return MixedWeight(tuple(self._runs(order)))

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in floats, [O, I]."""
        return torch.cat([part.dequantize(dtype) for part in self.parts])

    def _runs(self, order: torch.Tensor) -> Iterator[BlockWeight]:
        starts = torch.tensor([0] + [len(part.rows_OB) for part in self.parts]).cumsum(0)
        part_of = torch.bucketize(order, starts, right=True) - 1
        numbers, lengths = part_of.unique_consecutive(return_counts=True)
        for number, rows in zip(numbers.tolist(), order.split(lengths.tolist()), strict=True):
            yield self.parts[number].rows(rows - starts[number])


def stack(weights: Sequence[BlockWeight]) -> BlockWeight | MixedWeight:
    """The weights of layers that read the same input, one below the other; their `input` is FLOAT if any of them is."""
    input_ = Input.FLOAT if any(weight.input is Input.FLOAT for weight in weights) else Input.DYNAMIC
    merged: list[BlockWeight] = []
    for weight in weights:
        if merged and merged[-1].format is weight.format:
            merged[-1] = replace(merged[-1], rows_OB=torch.cat([merged[-1].rows_OB, weight.rows_OB]))
        else:
            merged.append(replace(weight, input=input_))
    return merged[0] if len(merged) == 1 else MixedWeight(tuple(merged))


def quantize_groups(x_TI: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a dynamic input: int8 [T, G, group] and scales [T, G, 1] in fp32; the last group is padded with 0.

    A scale maps the largest absolute value of its group to 127. A group of zeros has scale 0.
    """
    padded = torch.nn.functional.pad(x_TI.float(), (0, -x_TI.shape[1] % group)).unflatten(1, (-1, group))
    largest = padded.abs().amax(2, keepdim=True)
    inverse = torch.full_like(largest, 127) / largest  # 127 / largest would be rounded twice
    x_q = (padded * torch.where(largest == 0, 0.0, inverse)).round_()
    return x_q.nan_to_num_(0).to(torch.int8), largest / 127


def _ggml(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    def dequantize(blocks: torch.Tensor) -> torch.Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize as to_floats

        values = to_floats(blocks.flatten(0, -2).numpy(), GGMLQuantizationType[kind])
        return torch.from_numpy(np.require(values, np.float32, "W")).view(*blocks.shape[:-1], -1)

    return dequantize


def _halves(first: int, count: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    """What reads so many fp16 scales that begin at a byte of a block."""
    return lambda blocks: blocks[..., first : first + 2 * count].view(torch.float16)


def _int4(blocks: torch.Tensor) -> torch.Tensor:
    """{fp16 d; u8 zero; byte j of the others: value j, and value j + half of them << 4}: (code - zero) * d."""
    zero, codes = blocks[..., 2:3], blocks[..., 3:]
    return (torch.cat([codes & 15, codes >> 4], -1).float() - zero) * _int4_scales(blocks).float()


def _int4_scales(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[..., :2].contiguous().view(torch.float16)


def _fp8(blocks: torch.Tensor) -> torch.Tensor:
    """{fp32 d, below 128; e4m3 values}: value * d."""
    return blocks[..., 4:].contiguous().view(torch.float8_e4m3fn).float() * _fp8_scales(blocks)


def _fp8_scales(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[..., :4].view(torch.float32)


def _mxfp4_scales(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[..., :1].view(torch.float8_e8m0fnu).float()


FORMATS = {
    item.name: item
    for item in (
        BlockFormat("q4_0", 32, 18, 32, _ggml("Q4_0"), _halves(0)),
        BlockFormat("q4_1", 32, 20, 32, _ggml("Q4_1"), _halves(0, 2)),
        BlockFormat("q5_0", 32, 22, 32, _ggml("Q5_0"), _halves(0)),
        BlockFormat("q5_1", 32, 24, 32, _ggml("Q5_1"), _halves(0, 2)),
        BlockFormat("q8_0", 32, 34, 32, _ggml("Q8_0"), _halves(0)),
        BlockFormat("q4_k", 256, 144, 32, _ggml("Q4_K"), _halves(0, 2)),
        BlockFormat("q5_k", 256, 176, 32, _ggml("Q5_K"), _halves(0, 2)),
        BlockFormat("q6_k", 256, 210, 32, _ggml("Q6_K"), _halves(208)),
        BlockFormat("mxfp4", 32, 17, 32, _ggml("MXFP4"), _mxfp4_scales),
        BlockFormat("int4_32", 32, 19, 32, _int4, _int4_scales),
        BlockFormat("int4_64", 64, 35, 64, _int4, _int4_scales),
        BlockFormat("int4_128", 128, 67, 128, _int4, _int4_scales),
        BlockFormat("fp8_128", 128, 132, 0, _fp8, _fp8_scales),
    )
}

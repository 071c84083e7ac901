"""DeepSeek-V3's block-wise FP8: e4m3 values, and one scale (fp32, bf16 or E8M0) for each block of rows and columns.

The blocks at the right and lower edge may be smaller. A scale for each row, or one for all, is a block of that size.
Shapes: M rows, N columns, G groups of 128 columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from engine.loading.stored_dtypes import E8M0, FLOATS
from kernels.block_weight import FORMATS, BlockWeight
from kernels.linear_int8 import Input

if TYPE_CHECKING:
    from engine.loading.weights import Weights

_FORMAT = FORMATS["fp8_128"]
_SCALES_BELOW = 128.0  # the kernels multiply scales by 2^120


def scales_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The number of blocks in each dimension of a weight."""
    return tuple(-(-size // length) for size, length in zip(shape, block, strict=False))


def floats(scales: torch.Tensor) -> torch.Tensor:
    """Scales in fp32; bytes are E8M0."""
    return (scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales).float()


def read(
    weights: Weights, scales_name: str, weight_MN: torch.Tensor, block: tuple[int, int], *, keeps_blocks: bool
) -> torch.Tensor | BlockWeight | None:
    """A weight whose scales are in this tensor; None if that is missing or does not fit, which is noted.

    Blocks are kept where kernels take them; else the weight is in fp32.
    """
    shape = scales_shape(tuple(weight_MN.shape), block)
    shapes = (shape, (1,)) if shape == (1, 1) else (shape,)
    scales = weights.take_scales(scales_name, *shapes, dtypes=(*FLOATS, *E8M0))
    if scales is None:
        return None
    scales = scales.view(shape)
    if keeps_blocks:
        if (blocks := to_blocks(weight_MN, scales, block)) is not None:
            return blocks
        weights.warn_once(
            f"FP8 weights whose scales are of {block[0]} x {block[1]} values are expanded: kernels take scales of "
            "128 columns, below 128"
        )
    return dequantize(weight_MN, scales, block)


def dequantize(weight_MN: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The weight in fp32."""
    return weight_MN.float() * _expand(floats(scales), weight_MN.shape, block)


def to_blocks(weight_MN: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> BlockWeight | None:
    """The weight in kernels.block_weight's fp8_128.

    Returns:
        None where the columns of a scale are no whole groups of 128, or a scale is not below 128.
    """
    (num_rows, num_columns), group = weight_MN.shape, _FORMAT.values
    if (block[1] % group and block[1] < num_columns) or not (floats(scales).abs() < _SCALES_BELOW).all():
        return None
    num_groups = _FORMAT.num_blocks(num_columns)
    columns = torch.arange(num_groups) * group // block[1]
    scale_MG = floats(scales)[torch.arange(num_rows) // block[0]][:, columns].contiguous()
    blocks = torch.empty(num_rows, num_groups, _FORMAT.bytes, dtype=torch.uint8)
    blocks[..., :4] = scale_MG[..., None].view(torch.uint8)
    values = weight_MN.view(torch.uint8)
    if padding := -num_columns % group:
        values = F.pad(values, (0, padding))
    blocks[..., 4:] = values.unflatten(1, (-1, group))
    return BlockWeight(blocks.flatten(1), _FORMAT, num_columns, Input.FLOAT)


def quantize(weight_MN: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The e4m3 values, and the scales. A scale maps the largest value of its block to 448, e4m3's maximum."""
    (num_rows, num_columns), (height, width) = weight_MN.shape, block
    padded = F.pad(weight_MN.abs().float(), (0, -num_columns % width, 0, -num_rows % height))
    largest = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width)).amax(dim=(1, 3))
    scales = largest.clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (weight_MN.float() / _expand(scales, weight_MN.shape, block)).to(torch.float8_e4m3fn), scales


def _expand(scales: torch.Tensor, shape: torch.Size, block: tuple[int, int]) -> torch.Tensor:
    """Each block's scale repeated for each value of the block, [M, N]."""
    (num_rows, num_columns) = shape
    height, width = min(block[0], num_rows), min(block[1], num_columns)  # a config can have any
    return scales.repeat_interleave(height, 0)[:num_rows].repeat_interleave(width, 1)[:, :num_columns]

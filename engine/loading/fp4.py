"""FP4 with a power of two as the scale of 32 values (MXFP4): as DeepSeek-V4 and compressed-tensors store it.

A byte holds two e2m1 codes, low nibble first: values 2j and 2j + 1. Scales are E8M0: 2^(byte - 127). ggml's block has
the same codes in another order: value j in the low nibble of byte j, value j + 16 in the high one.
Shapes: O rows, G groups of 32 values.
"""

from __future__ import annotations

import torch

from kernels.block_weight import FORMATS, BlockWeight
from kernels.linear_int8 import Input

_FORMAT = FORMATS["mxfp4"]


def scales_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One scale for 32 values of a row."""
    return shape[0], shape[1] // _FORMAT.values


def to_blocks(packed: torch.Tensor, scale_OG: torch.Tensor, input_: Input) -> BlockWeight:
    """From codes [O, I / 2] and E8M0 scales [O, I / 32], each of one byte."""
    pairs_OGX = packed.view(torch.uint8).unflatten(1, (-1, _FORMAT.values // 2))
    codes_OGX = torch.stack([pairs_OGX & 15, pairs_OGX >> 4], -1).flatten(2)
    low, high = codes_OGX.chunk(2, 2)
    blocks = torch.cat([scale_OG.view(torch.uint8)[..., None], low | high << 4], 2)
    return BlockWeight(blocks.flatten(1), _FORMAT, packed.shape[1] * 2, input_)

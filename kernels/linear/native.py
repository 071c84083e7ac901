"""A weight packed for native products. Contracts: kernels.linear, kernels.linear_int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.block_weight import BlockWeight, MixedWeight
from kernels.quantized_weight import Input, QuantizedWeight
from kernels.types import Linear, Weight

if TYPE_CHECKING:
    from kernels.native._kernels import PackedWeight


def linear(weight: Weight, bias_O: torch.Tensor | None, dtype: torch.dtype, out_dtype: torch.dtype) -> Linear:
    """For x of one dtype, or of any where the weight is in fp32; y is in out_dtype: the same, or fp32."""
    bias = None if bias_O is None else bias_O.float()
    return native.library.Linear(pack(weight, dtype), bias, out_dtype).forward


def pack(weight: Weight, dtype: torch.dtype, parts: int = 1) -> PackedWeight:
    """Pack a weight for x of one dtype, its rows in so many parts that lie interleaved.

    A weight in floats is computed with in its own dtype, whatever x is.
    """
    if isinstance(weight, BlockWeight | MixedWeight):
        weight = weight.dequantize(dtype)
    if not isinstance(weight, QuantizedWeight):
        return native.library.PackedWeight(weight.contiguous(), None, weight.dtype, 0.0, 0, 1, parts)
    operand = dtype if weight.input is Input.FLOAT else torch.uint8
    return native.library.PackedWeight(
        weight.values_OI.contiguous(), weight.scale_O, operand, *weight.grid, weight.rotation, parts
    )

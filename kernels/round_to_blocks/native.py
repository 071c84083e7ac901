"""Rounding in native code where there is some. Contract: kernels.round_to_blocks."""

from __future__ import annotations

import torch

from kernels import native
from kernels.block_weight import FORMATS, BlockWeight
from kernels.quantized_weight import Input
from kernels.round_to_blocks import reference

_DTYPES = (torch.bfloat16, torch.float32)


def round_to_blocks(
    weight_OI: torch.Tensor,
    format_name: str,
    importance_I: torch.Tensor | None = None,
    input_: Input = Input.DYNAMIC,
) -> BlockWeight:
    if native.ISA is None:
        return reference.round_to_blocks(weight_OI, format_name, importance_I, input_)
    floats_OI = weight_OI if weight_OI.dtype in _DTYPES else weight_OI.float()
    rows_OB = native.library.round_to_blocks(floats_OI.contiguous(), format_name == "q4_0", importance_I)
    return BlockWeight(rows_OB, FORMATS[format_name], weight_OI.shape[1], input_)

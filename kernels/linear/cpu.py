"""A linear layer in bf16 in native code. Contract: kernels.linear."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.native import INT, POINTER, function, plain_function

_PANEL, _TILE = 16, 32  # rows and columns that a packed weight is made of (kernels/native/gemm.h)
Apply = Callable[[torch.Tensor], torch.Tensor]


def bind(out_dtype: torch.dtype = torch.bfloat16) -> Callable[[torch.Tensor, torch.Tensor | None], Apply]:
    """`pack` for one dtype of y: bf16, or fp32, which the sums are in."""
    call = function("linear", out_dtype, POINTER, INT, INT, POINTER, POINTER, INT, INT, POINTER)
    pack_weight = plain_function("linear_pack", POINTER, INT, INT, POINTER)

    def pack(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Apply:
        out_size, in_size = weight_OI.shape
        packed = torch.empty(out_size + -out_size % _PANEL, in_size + -in_size % _TILE, dtype=torch.bfloat16)
        pack_weight(weight_OI.contiguous().data_ptr(), out_size, in_size, packed.data_ptr())
        bias = None if bias_O is None else F.pad(bias_O.float(), (0, -out_size % _PANEL)).contiguous()
        held = (packed, bias)  # their memory, as long as the layer lives
        weight, added = packed.data_ptr(), 0 if bias is None else bias.data_ptr()

        def apply(x_TI: torch.Tensor, _held: object = held) -> torch.Tensor:
            if x_TI.stride(1) != 1:
                x_TI = x_TI.contiguous()
            y_TO = torch.empty(len(x_TI), out_size, dtype=out_dtype)
            call(x_TI.data_ptr(), x_TI.stride(0), len(x_TI), weight, added, in_size, out_size, y_TO.data_ptr())
            return y_TO

        return apply

    return pack

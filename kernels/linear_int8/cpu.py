"""An int8 linear layer in native code: rows made uint8 and multiplied in one call. Contract: kernels.linear_int8."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.linear_int8.torch import pack as pack_torch
from kernels.linear_int8.weight import Input, QuantizedWeight, StaticInput
from kernels.native import FLOAT, INT, POINTER, function, memory, plain_function

_PANEL, _TILE = 16, 64  # rows and columns that a packed weight is made of (kernels/native/gemm.h)
Apply = Callable[[torch.Tensor], torch.Tensor]


def bind(
    dtype: torch.dtype, out_dtype: torch.dtype | None = None
) -> Callable[[QuantizedWeight, torch.Tensor | None], Apply]:
    """`pack` for one dtype of x and of y, which may be fp32 whatever x is."""
    out_dtype = out_dtype or dtype
    name = "linear_int8" if out_dtype is dtype else "linear_int8_bf16_to"
    call = function(name, out_dtype, POINTER, INT, INT, *[POINTER] * 4, INT, INT, FLOAT, INT, POINTER)
    pack_weight = plain_function("linear_int8_pack", POINTER, INT, INT, POINTER)

    def pack(weight: QuantizedWeight, bias_O: torch.Tensor | None) -> Apply:
        if weight.input is Input.FLOAT:
            product = pack_torch(weight, bias_O)
            return lambda x_TI: product(x_TI).to(out_dtype)
        values_OI = weight.values_OI.contiguous()
        out_size, in_size = values_OI.shape
        packed = memory.empty(out_size + -out_size % _PANEL, in_size + -in_size % _TILE, dtype=torch.int8)
        pack_weight(values_OI.data_ptr(), out_size, in_size, packed.data_ptr())
        scale_O, totals_O = _whole(weight.scale_O), _whole(values_OI.sum(1, dtype=torch.int32))
        bias = None if bias_O is None else _whole(bias_O.float())
        grid = weight.input if isinstance(weight.input, StaticInput) else StaticInput(0.0, 0)
        held = (packed, scale_O, totals_O, bias)  # their memory, as long as the layer lives
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in held]

        def apply(x_TI: torch.Tensor, _held: object = held) -> torch.Tensor:
            if x_TI.stride(1) != 1:
                x_TI = x_TI.contiguous()
            y_TO = torch.empty(len(x_TI), out_size, dtype=out_dtype)
            x, y = x_TI.data_ptr(), y_TO.data_ptr()
            call(x, x_TI.stride(0), len(x_TI), *pointers, in_size, out_size, grid.scale, grid.zero_point, y)
            return y_TO

        return apply

    return pack


def _whole(x_O: torch.Tensor) -> torch.Tensor:
    """With memory for whole panels."""
    return F.pad(x_O, (0, -len(x_O) % _PANEL)).contiguous()

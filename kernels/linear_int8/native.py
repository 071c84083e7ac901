"""An int8 linear layer in native code: rows made uint8 and multiplied in one call. Contract: kernels.linear_int8."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.linear_int8.weight import Input, QuantizedWeight, StaticInput
from kernels.native import FLOAT, INT, POINTER, function, memory, plain_function

_PANEL, _TILE = 16, 64  # rows and columns that a packed weight is made of (kernels/native/gemm.h)
_NUMBERS_TILE = {torch.bfloat16: 32, torch.float32: 16}  # columns, where only weights are int8
Apply = Callable[[torch.Tensor], torch.Tensor]


def bind(
    dtype: torch.dtype, out_dtype: torch.dtype | None = None
) -> Callable[[QuantizedWeight, torch.Tensor | None], Apply]:
    """`pack` for one dtype of x and of y, which may be fp32 whatever x is."""
    out_dtype = out_dtype or dtype
    suffix = "" if out_dtype is dtype else "_bf16_to"
    sizes = (POINTER, INT, INT)
    call = function(f"linear_int8{suffix}", out_dtype, *sizes, *[POINTER] * 4, INT, INT, FLOAT, INT, POINTER)
    call_weight_only = function(f"weight_only{suffix}", out_dtype, *sizes, *[POINTER] * 3, INT, INT, POINTER)
    pack_int8 = plain_function("linear_int8_pack", POINTER, INT, INT, POINTER)
    pack_weight_only = function("weight_only_pack", dtype, POINTER, INT, INT, POINTER)

    def pack(weight: QuantizedWeight, bias_O: torch.Tensor | None) -> Apply:
        is_weight_only = weight.input is Input.FLOAT
        values_OI = weight.values_OI.contiguous()
        out_size, in_size = values_OI.shape
        tile = _NUMBERS_TILE[dtype] if is_weight_only else _TILE
        packed = memory.empty(out_size + -out_size % _PANEL, in_size + -in_size % tile, dtype=torch.int8)
        pack_values = pack_weight_only if is_weight_only else pack_int8
        pack_values(values_OI.data_ptr(), out_size, in_size, packed.data_ptr())
        held = [packed, _whole(weight.scale_O)]  # their memory, as long as the layer lives
        if not is_weight_only:
            held.append(_whole(values_OI.sum(1, dtype=torch.int32)))
        if bias_O is not None:
            held.append(_whole(bias_O.float()))
        pointers = [tensor.data_ptr() for tensor in held] + ([0] if bias_O is None else [])
        grid = weight.input if isinstance(weight.input, StaticInput) else StaticInput(0.0, 0)
        extra = () if is_weight_only else (grid.scale, grid.zero_point)
        run = call_weight_only if is_weight_only else call

        def apply(x_TI: torch.Tensor, _held: object = held) -> torch.Tensor:
            if x_TI.stride(1) != 1:
                x_TI = x_TI.contiguous()
            y_TO = torch.empty(x_TI.shape[0], out_size, dtype=out_dtype)
            x, y = x_TI.data_ptr(), y_TO.data_ptr()
            run(x, x_TI.stride(0), x_TI.shape[0], *pointers, in_size, out_size, *extra, y)
            return y_TO

        return apply

    return pack


def _whole(x_O: torch.Tensor) -> torch.Tensor:
    """With memory for whole panels."""
    return F.pad(x_O, (0, -len(x_O) % _PANEL)).contiguous()

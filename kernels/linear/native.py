"""A linear layer in native code. Contract: kernels.linear."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.native import INT, POINTER, function, memory, plain_function

_PANEL = 16  # rows that a packed weight is made of (kernels/native/gemm.h), and
_TILES = {torch.bfloat16: 32, torch.float32: 16}  # columns
_NAMES = {  # dtypes of x, the weight, y
    (torch.bfloat16, torch.bfloat16, torch.bfloat16): "linear_bf16",
    (torch.bfloat16, torch.bfloat16, torch.float32): "linear_bf16_to_f32",
    (torch.float32, torch.float32, torch.float32): "linear_f32",
    (torch.bfloat16, torch.float32, torch.float32): "linear_f32_of_bf16",
}
Apply = Callable[[torch.Tensor], torch.Tensor]


def bind(
    dtype: torch.dtype, *, weight_dtype: torch.dtype | None = None, out_dtype: torch.dtype | None = None
) -> Callable[[torch.Tensor, torch.Tensor | None], Apply]:
    """`pack` for one dtype of x; a weight in fp32 is computed with in fp32, and y can be in fp32, whatever x is."""
    weight_dtype, out_dtype = weight_dtype or dtype, out_dtype or dtype
    tile = _TILES[weight_dtype]
    name = _NAMES[dtype, weight_dtype, out_dtype]
    call = plain_function(name, POINTER, INT, INT, POINTER, POINTER, INT, INT, POINTER)
    pack_weight = function("linear_pack", weight_dtype, POINTER, INT, INT, POINTER)

    def pack(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Apply:
        assert weight_OI.dtype is weight_dtype
        weight_OI = weight_OI.contiguous()
        out_size, in_size = weight_OI.shape
        packed = memory.empty(out_size + -out_size % _PANEL, in_size + -in_size % tile, dtype=weight_dtype)
        pack_weight(weight_OI.data_ptr(), out_size, in_size, packed.data_ptr())
        bias = None if bias_O is None else F.pad(bias_O.float(), (0, -out_size % _PANEL)).contiguous()
        held = (packed, bias)  # their memory, as long as the layer lives
        weight, added = packed.data_ptr(), 0 if bias is None else bias.data_ptr()

        def apply(x_TI: torch.Tensor, _held: object = held) -> torch.Tensor:
            if x_TI.stride(1) != 1:
                x_TI = x_TI.contiguous()
            y_TO = torch.empty(x_TI.shape[0], out_size, dtype=out_dtype)
            call(x_TI.data_ptr(), x_TI.stride(0), x_TI.shape[0], weight, added, in_size, out_size, y_TO.data_ptr())
            return y_TO

        return apply

    return pack

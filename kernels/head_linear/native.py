"""head_linear in native code, with weights packed once. Contract: kernels.head_linear."""

from collections.abc import Callable

import torch

from kernels.native import INT, POINTER, function, operand_dtype, panels

_Apply = Callable[..., None]


def bind(dtype: torch.dtype) -> Callable[[torch.Tensor], _Apply]:
    """`pack` for one dtype."""
    call = function("head_linear", dtype, POINTER, INT, INT, POINTER, POINTER, INT, INT, INT, INT, INT, INT, INT)
    operand = operand_dtype(dtype)

    def pack(weight_NKM: torch.Tensor) -> _Apply:
        _, num_in, num_out = weight_NKM.shape
        packed = panels(weight_NKM, operand)
        inner = packed.shape[2] * packed.shape[4]

        def apply(x_TNK: torch.Tensor, out_TNM: torch.Tensor, first: int = 0) -> None:
            assert x_TNK.stride(2) == out_TNM.stride(2) == 1
            num_tokens, num_heads, _ = x_TNK.shape
            x, out, weight = x_TNK.data_ptr(), out_TNM.data_ptr(), packed[first].data_ptr()
            x_strides, out_strides = x_TNK.stride()[:2], out_TNM.stride()[:2]
            call(x, *x_strides, weight, out, *out_strides, num_tokens, num_heads, num_in, num_out, inner)

        return apply

    return pack

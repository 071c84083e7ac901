"""rotary in native code, one pass. Contract: kernels.rotary."""

from collections.abc import Callable

import torch

from kernels.native import INT, POINTER, function


def bind(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The operation for one dtype."""
    call = function("rotary", dtype, POINTER, INT, POINTER, POINTER, POINTER, INT, INT, INT)

    def rotary(x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
        num_rows, num_heads, dim = x_TND.shape
        if x_TND.stride()[1:] != (dim, 1):
            x_TND = x_TND.contiguous()
        y = torch.empty(num_rows, num_heads, dim, dtype=dtype)
        x, cos, sin = x_TND.data_ptr(), cos_TD.data_ptr(), sin_TD.data_ptr()
        call(x, x_TND.stride(0), cos, sin, y.data_ptr(), num_rows, num_heads, dim)
        return y

    return rotary

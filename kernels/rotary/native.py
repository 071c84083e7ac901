"""rotary in native code, one pass. Contract: kernels.rotary."""

from collections.abc import Callable

import torch

from kernels.native import INT, POINTER, function


def bind(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """The operation for one dtype."""
    call = function("rotary", dtype, POINTER, INT, INT, POINTER, POINTER, POINTER, *[INT] * 5)

    def rotary(
        x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, y_TND: torch.Tensor | None = None
    ) -> torch.Tensor:
        num_rows, num_heads, dim = x_TND.shape
        if y_TND is None:
            y_TND = torch.empty(num_rows, num_heads, dim, dtype=dtype)
        (x_row, x_head, x_step), (y_row, y_head, y_step) = x_TND.stride(), y_TND.stride()
        assert x_step == y_step == 1
        x, cos, sin, y = x_TND.data_ptr(), cos_TD.data_ptr(), sin_TD.data_ptr(), y_TND.data_ptr()
        call(x, x_row, x_head, cos, sin, y, y_row, y_head, num_rows, num_heads, dim)
        return y_TND

    return rotary

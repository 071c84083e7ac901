"""silu_mul in native code, one pass. Contract: kernels.silu_mul."""

from collections.abc import Callable

import torch

from kernels.native import INT, POINTER, function


def bind(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The operation for one dtype."""
    call = function("silu_mul", dtype, POINTER, POINTER, INT, INT)

    def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
        gate_up = gate_up.contiguous()
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        y = gate_up.new_empty(num_rows, size)
        call(gate_up.data_ptr(), y.data_ptr(), num_rows, size)
        return y

    return silu_mul

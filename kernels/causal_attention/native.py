"""causal_attention in native code (native.cpp). Contract: kernels.causal_attention."""

from collections.abc import Callable

import torch

from kernels.native import FLOAT, INT, POINTER, function


def bind(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]:
    """The operation for one dtype."""
    rows = (POINTER, INT, INT)
    call = function("causal_attention", dtype, *rows, *rows, *rows, POINTER, INT, INT, INT, INT, INT, FLOAT)

    def attend(q_QNX: torch.Tensor, k_LNX: torch.Tensor, v_LNV: torch.Tensor, scale: float) -> torch.Tensor:
        assert q_QNX.stride(2) == k_LNX.stride(2) == v_LNV.stride(2) == 1
        num_queries, num_heads, dim = q_QNX.shape
        o_QNV = q_QNX.new_empty(num_queries, num_heads, v_LNV.shape[2])
        views = ((x.data_ptr(), x.stride(0), x.stride(1)) for x in (q_QNX, k_LNX, v_LNV))
        arguments = [value for view in views for value in view]
        call(*arguments, o_QNV.data_ptr(), num_queries, len(k_LNX), num_heads, dim, v_LNV.shape[2], scale)
        return o_QNV

    return attend

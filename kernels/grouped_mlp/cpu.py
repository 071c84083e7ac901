"""The experts with the sum over a token's experts in native code. Contract: kernels.grouped_mlp."""

import functools
from collections.abc import Callable

import torch

from kernels.grouped_mlp.torch import pack_with
from kernels.native import INT, POINTER, function


def bind(dtype: torch.dtype) -> Callable[..., Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]:
    """`pack` for one dtype."""
    call = function("combine", dtype, POINTER, POINTER, POINTER, POINTER, INT, INT, INT)

    def combine(y_PH: torch.Tensor, where_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        num_tokens, top_k = where_TK.shape
        y_TH = y_PH.new_empty(num_tokens, y_PH.shape[1])
        where, weights = where_TK.contiguous(), weights_TK.contiguous()
        pointers = (tensor.data_ptr() for tensor in (y_PH, where, weights, y_TH))
        call(*pointers, num_tokens, top_k, y_PH.shape[1])
        return y_TH

    return functools.partial(pack_with, combine)

"""draw in native code. Contract: kernels.draw."""

from __future__ import annotations

import array
from collections.abc import Callable

import torch

from kernels.native import INT, POINTER, function

Draw = Callable[[torch.Tensor, list[float], list[float]], list[int]]


def bind(dtype: torch.dtype) -> Draw:
    """The operation for one dtype of the logits."""
    call = function("draw", dtype, POINTER, INT, INT, INT, POINTER, POINTER, POINTER)

    def draw(logits_RV: torch.Tensor, temperatures: list[float], uniforms: list[float]) -> list[int]:
        assert logits_RV.dtype is dtype
        if logits_RV.stride(1) != 1:
            logits_RV = logits_RV.contiguous()
        num_rows, size = logits_RV.shape
        inputs = array.array("f", temperatures), array.array("d", uniforms)
        tokens = array.array("q", bytes(8 * num_rows))
        pointers = (values.buffer_info()[0] for values in (*inputs, tokens))
        call(logits_RV.data_ptr(), logits_RV.stride(0), num_rows, size, *pointers)
        return tokens.tolist()

    return draw

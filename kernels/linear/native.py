"""A linear layer in native code. Contract: kernels.linear."""

from collections.abc import Callable

import torch

from kernels import native
from kernels.types import Linear


def linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
    """A weight in fp32 is computed with in fp32, whatever x is; y has the weight's dtype, unless out_dtype is fp32."""
    layer = native.library.Linear(weight_OI.contiguous(), None if bias_O is None else bias_O.float())
    return allocating(layer.forward, len(weight_OI), out_dtype or weight_OI.dtype)


def allocating(forward: Callable[[torch.Tensor, torch.Tensor], None], out_size: int, dtype: torch.dtype) -> Linear:
    """A packed layer's forward(x_TI, y_TO) with a new y_TO."""

    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        y_TO = torch.empty(len(x_TI), out_size, dtype=dtype)
        forward(x_TI, y_TO)
        return y_TO

    return apply

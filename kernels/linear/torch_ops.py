"""A linear layer through torch's own operator, on any device. Contract: kernels.linear."""

import torch
import torch.nn.functional as F

from kernels.types import Linear


def linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TI.to(weight_OI.dtype), weight_OI, bias_O).to(out_dtype or x_TI.dtype)

    return apply

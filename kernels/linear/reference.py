"""A linear layer as a matrix product in fp32. Contract: kernels.linear."""

import torch

from kernels.types import Linear


def linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        y_TO = x_TI.float() @ weight_OI.float().T
        return (y_TO if bias_O is None else y_TO + bias_O.float()).to(out_dtype or x_TI.dtype)

    return apply

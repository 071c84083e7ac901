"""A linear layer as a matrix product in fp32. Contract: kernels.linear."""

from collections.abc import Callable

import torch


def pack(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        y = x_TI.float() @ weight_OI.float().T
        return (y if bias_O is None else y + bias_O.float()).to(x_TI.dtype)

    return apply


def pack_f32(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    product = pack(weight_OI, bias_O)
    return lambda x_TI: product(x_TI.float())

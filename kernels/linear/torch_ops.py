"""A linear layer through torch's own operator, on any device. Contract: kernels.linear."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def pack(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TI, weight_OI, bias_O)

    return apply


def pack_f32(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    product = pack(weight_OI, bias_O)
    return lambda x_TI: product(x_TI.float())

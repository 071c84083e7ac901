"""The block from the table's other operations. Contract: kernels.mlp."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.linear_int8 import QuantizedWeight

Weight = torch.Tensor | QuantizedWeight
Linear = Callable[[torch.Tensor], torch.Tensor]
Layer = tuple[Weight, torch.Tensor | None]
Apply = Callable[..., torch.Tensor]


def pack(
    linear: Callable[[Weight, torch.Tensor | None], Linear],
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    gate_up: Layer,
    down: Layer,
) -> Apply:
    first, second = linear(*gate_up), linear(*down)

    def apply(x_TH: torch.Tensor, onto_TH: torch.Tensor | None = None) -> torch.Tensor:
        y_TH = second(silu_mul(first(x_TH)))
        return y_TH if onto_TH is None else onto_TH.add_(y_TH)

    return apply

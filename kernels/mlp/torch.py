"""The block from the table's other operations. Contract: kernels.mlp."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.linear_int8 import QuantizedWeight

Weight = torch.Tensor | QuantizedWeight
Linear = Callable[[torch.Tensor], torch.Tensor]
Layer = tuple[Weight, torch.Tensor | None]


def pack(
    linear: Callable[[Weight, torch.Tensor | None], Linear],
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    gate_up: Layer,
    down: Layer,
) -> Linear:
    first, second = linear(*gate_up), linear(*down)
    return lambda x_TH: second(silu_mul(first(x_TH)))

"""The block composed of other operations. Contract: kernels.mlp."""

from collections.abc import Callable

import torch

from kernels.types import MLP, Layer, Projection


def mlp(projection: Projection, silu_mul: Callable[[torch.Tensor], torch.Tensor], gate_up: Layer, down: Layer) -> MLP:
    first, second = projection(*gate_up), projection(*down)

    def apply(x_TH: torch.Tensor, onto_TH: torch.Tensor | None = None) -> torch.Tensor:
        y_TH = second(silu_mul(first(x_TH)))
        return y_TH if onto_TH is None else onto_TH.add_(y_TH)

    return apply

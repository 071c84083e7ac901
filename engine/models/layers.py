"""Parts that every decoder of the family is built from, each made from a checkpoint's tensors and the kernel table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.loading.weights import Weights
    from engine.models.config import ModelConfig
    from kernels.table import KernelTable


@dataclass(frozen=True)
class Builder:
    """What a part needs to build itself."""

    config: ModelConfig
    weights: Weights
    kernels: KernelTable

    def stacked(
        self, *names: str, in_size: int, out_sizes: list[int], bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`{name}.weight` (and `.bias`) of several layers that read the same input, stacked by output."""
        pairs = list(zip(names, out_sizes, strict=True))
        weight = torch.cat([self.weights.take(f"{name}.weight", (size, in_size)) for name, size in pairs])
        biases = torch.cat([self.weights.take(f"{name}.bias", (size,)) for name, size in pairs]) if bias else None
        return weight, biases

    def linear(
        self, *names: str, in_size: int, out_sizes: list[int], bias: bool
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """One linear layer made of one or several of the checkpoint's."""
        return self.kernels.linear(*self.stacked(*names, in_size=in_size, out_sizes=out_sizes, bias=bias))

    def norm(self, name: str) -> torch.Tensor:
        """The weight of an RMSNorm over hidden_size."""
        return self.weights.take(f"{name}.weight", (self.config.hidden_size,))


class MLP:
    """A feed-forward block of a given width: down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, build: Builder, prefix: str, inter: int) -> None:
        hidden, bias = build.config.hidden_size, build.config.mlp_bias
        self._gate_up = build.linear(
            f"{prefix}.gate_proj", f"{prefix}.up_proj", in_size=hidden, out_sizes=[inter, inter], bias=bias
        )
        self._down = build.linear(f"{prefix}.down_proj", in_size=inter, out_sizes=[hidden], bias=bias)
        self._silu_mul = build.kernels.silu_mul

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self._down(self._silu_mul(self._gate_up(x_TH)))

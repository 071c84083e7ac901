"""Parts that every decoder of the family is built from, each made from a checkpoint's tensors and the kernel table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels.linear_int8 import QuantizedWeight, stack

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
        self, *names: str, in_size: int, out_sizes: list[int], bias: bool, numbers: bool = False
    ) -> tuple[torch.Tensor | QuantizedWeight, torch.Tensor | None]:
        """`{name}.weight` (and `.bias`) of several layers that read the same input, stacked by output.

        Layers whose int8 weights treat that input in different ways are made into numbers, and all with `numbers`.
        """
        pairs = list(zip(names, out_sizes, strict=True))
        biases = torch.cat([self.weights.take(f"{name}.bias", (size,)) for name, size in pairs]) if bias else None
        if numbers:
            parts = [self.weights.take(f"{name}.weight", (size, in_size)) for name, size in pairs]
            return torch.cat(parts), biases
        weights = [self.weights.take_linear(name, (size, in_size)) for name, size in pairs]
        quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
        if len(quantized) == len(weights) and (stacked := stack(quantized)) is not None:
            return stacked, biases
        return torch.cat([self._as_numbers(weight) for weight in weights]), biases

    def _as_numbers(self, weight: torch.Tensor | QuantizedWeight) -> torch.Tensor:
        return weight.dequantize(self.weights.dtype) if isinstance(weight, QuantizedWeight) else weight

    def linear(
        self, *names: str, in_size: int, out_sizes: list[int], bias: bool, numbers: bool = False
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """One linear layer made of one or several of the checkpoint's; with `numbers`, never in int8."""
        stacked = self.stacked(*names, in_size=in_size, out_sizes=out_sizes, bias=bias, numbers=numbers)
        return self.kernels.pack_linear(*stacked)

    def norm(self, name: str) -> torch.Tensor:
        """The weight of an RMSNorm over hidden_size."""
        return self.weights.take(f"{name}.weight", (self.config.hidden_size,))


class MLP:
    """A feed-forward block of a given width: down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, build: Builder, prefix: str, inter: int) -> None:
        hidden, bias = build.config.hidden_size, build.config.mlp_bias
        gate_up = build.stacked(
            f"{prefix}.gate_proj", f"{prefix}.up_proj", in_size=hidden, out_sizes=[inter, inter], bias=bias
        )
        down = build.stacked(f"{prefix}.down_proj", in_size=inter, out_sizes=[hidden], bias=bias)
        self._apply = build.kernels.pack_mlp(build.kernels.pack_linear, build.kernels.silu_mul, gate_up, down)

    def forward(self, x_TH: torch.Tensor, onto_TH: torch.Tensor | None = None) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; with `onto_TH`, added to it in place."""
        return self._apply(x_TH, onto_TH)

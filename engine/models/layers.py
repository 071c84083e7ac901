"""The Builder that every part of a decoder is built with, and the dense MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels.linear_int8 import QuantizedWeight, stack

if TYPE_CHECKING:
    from engine.loading.weights import Weights
    from engine.models.config import ModelConfig
    from kernels.ops import Ops
    from kernels.types import Linear, Weight


@dataclass(frozen=True)
class Builder:
    """A model's shape, weights and operations, and what parts build from them."""

    config: ModelConfig
    weights: Weights
    ops: Ops

    def stacked(
        self, *names: str, in_size: int, out_sizes: list[int], bias: bool, dequantize: bool = False
    ) -> tuple[Weight, torch.Tensor | None]:
        """`{name}.weight` (and `.bias`) of several layers that read the same input, stacked by output.

        Int8 weights are dequantized if their kinds of input differ, or if `dequantize` is set.
        """
        pairs = list(zip(names, out_sizes, strict=True))
        biases = torch.cat([self.weights.take(f"{name}.bias", (size,)) for name, size in pairs]) if bias else None
        if dequantize:
            parts = [self.weights.take(f"{name}.weight", (size, in_size)) for name, size in pairs]
            return torch.cat(parts), biases
        weights = [self.weights.take_linear(name, (size, in_size)) for name, size in pairs]
        quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
        if len(quantized) == len(weights) and (stacked := stack(quantized)) is not None:
            return stacked, biases
        dtype = self.weights.dtype
        parts = [weight.dequantize(dtype) if isinstance(weight, QuantizedWeight) else weight for weight in weights]
        return torch.cat(parts), biases

    def linear(self, *names: str, in_size: int, out_sizes: list[int], bias: bool, dequantize: bool = False) -> Linear:
        """One linear layer from one or several of the checkpoint's layers; see `stacked`."""
        stacked = self.stacked(*names, in_size=in_size, out_sizes=out_sizes, bias=bias, dequantize=dequantize)
        return self.ops.projection(*stacked)

    def norm(self, name: str) -> torch.Tensor:
        """The weight of an RMSNorm over hidden_size."""
        return self.weights.take(f"{name}.weight", (self.config.hidden_size,))


class MLP:
    """A feed-forward block of width `inter`: down(silu(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, build: Builder, prefix: str, inter: int) -> None:
        hidden, bias = build.config.hidden_size, build.config.mlp_bias
        gate_up = build.stacked(
            f"{prefix}.gate_proj", f"{prefix}.up_proj", in_size=hidden, out_sizes=[inter, inter], bias=bias
        )
        down = build.stacked(f"{prefix}.down_proj", in_size=inter, out_sizes=[hidden], bias=bias)
        self._apply = build.ops.mlp(gate_up, down)

    def forward(self, x_TH: torch.Tensor, onto_TH: torch.Tensor | None = None) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; if `onto_TH` is given, the result is added to it in place."""
        return self._apply(x_TH, onto_TH)

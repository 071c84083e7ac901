"""The Builder that every part of a decoder is built with, and the dense MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.loading.weights import as_served
from kernels import block_weight
from kernels.block_weight import BlockWeight
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
        self, sizes: dict[str, int], in_size: int, *, bias: bool = False, dequantize: bool = False
    ) -> tuple[Weight, torch.Tensor | None]:
        """The weights (and biases) of several layers that read the same input, stacked: name -> size of its output.

        Weights in blocks stay so, whatever their formats. Int8 weights are dequantized if their kinds of input differ.
        All are dequantized if some are in blocks, int8 or floats and others are not, or if `dequantize` is set.
        """
        take, layers = self.weights.take, sizes.items()
        biases = _joined([take(f"{name}.bias", (size,)) for name, size in layers]) if bias else None
        if dequantize:
            return _joined([take(f"{name}.weight", (size, in_size)) for name, size in layers]), biases
        weights = [self.weights.take_part(name, (size, in_size)) for name, size in layers]
        quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
        if len(quantized) == len(weights) and (stacked := stack(quantized)) is not None:
            return as_served(stacked), biases
        in_blocks = [weight for weight in weights if isinstance(weight, BlockWeight)]
        if len(in_blocks) == len(weights):
            return block_weight.stack(in_blocks), biases
        dtype = self.weights.dtype
        parts = [weight if isinstance(weight, torch.Tensor) else weight.dequantize(dtype) for weight in weights]
        return _joined(parts), biases

    def linear(self, sizes: dict[str, int], in_size: int, *, bias: bool = False, dequantize: bool = False) -> Linear:
        """One linear layer from one or several of the checkpoint's layers; see `stacked`."""
        return self.ops.projection(*self.stacked(sizes, in_size, bias=bias, dequantize=dequantize))

    def fp32_linear(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> Linear:
        """A layer of fp32 arithmetic on inputs in the model's dtype: [O, I] and [O] in fp32.

        Weights that were bf16 in the checkpoint are multiplied as such where products are exact and sums fp32, which
        is several times as fast.
        """
        narrow_OI = weight_OI.to(self.weights.dtype)
        is_exact = self.ops.sums_in_fp32 and torch.equal(narrow_OI.float(), weight_OI)
        return self.ops.linear(narrow_OI if is_exact else weight_OI, bias_O, torch.float32)

    def task_head(self, name: str, size: int, *, bias: bool) -> Linear:
        """A linear layer on the final norm's output: in fp32, never in int8, as few products take no time."""
        weight_OH = self.weights.take(f"{name}.weight", (size, self.config.hidden_size), torch.float32)
        bias_O = self.weights.take(f"{name}.bias", (size,), torch.float32) if bias else None
        return self.ops.linear(weight_OH, bias_O, torch.float32)

    def norm(self, name: str) -> torch.Tensor:
        """The weight of an RMSNorm over hidden_size."""
        return self.weights.take(f"{name}.weight", (self.config.hidden_size,))


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The tensors one below the other; a single one as it is.

    torch.cat does this too; but of tensors without memory (engine.loading.taken_tensors) it is slow: it imports torch's
    compiler first, which takes 2 s and 70 MB.
    """
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for part, rows in zip(parts, whole.split(list(map(len, parts))), strict=True):
        rows.copy_(part)
    return whole


class MLP:
    """A feed-forward block of width `inter`: down(silu(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, build: Builder, prefix: str, inter: int) -> None:
        hidden, bias = build.config.hidden_size, build.config.mlp_bias
        gate_up = build.stacked({f"{prefix}.gate_proj": inter, f"{prefix}.up_proj": inter}, hidden, bias=bias)
        down = build.stacked({f"{prefix}.down_proj": hidden}, inter, bias=bias)
        self._apply = build.ops.mlp(gate_up, down)

    def forward(self, x_TH: torch.Tensor, onto_TH: torch.Tensor | None = None) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; if `onto_TH` is given, the result is added to it in place."""
        return self._apply(x_TH, onto_TH)

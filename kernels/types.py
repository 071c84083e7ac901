"""Types of packed weights: the callables that operations of kernels.ops return."""

from collections.abc import Callable
from typing import Protocol

import torch

from kernels.block_weight import BlockWeight, MixedWeight
from kernels.quantized_weight import QuantizedWeight

Weight = torch.Tensor | QuantizedWeight | BlockWeight | MixedWeight
Layer = tuple[Weight, torch.Tensor | None]  # a weight and its bias

Linear = Callable[[torch.Tensor], torch.Tensor]
GroupedMLP = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Projection(Protocol):
    """Ops.projection: packs a weight of any kind."""

    def __call__(self, weight: Weight, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None) -> Linear: ...


class HeadLinear(Protocol):
    """A packed head_linear (kernels.head_linear)."""

    def __call__(self, x_TNK: torch.Tensor, out_TNM: torch.Tensor, first: int = 0) -> None: ...


class Compression(Protocol):
    """A packed compression block (kernels.compression)."""

    def __call__(self, x_TH: torch.Tensor, residual_TH: torch.Tensor) -> None: ...


class MLP(Protocol):
    """A packed feed-forward block (kernels.mlp)."""

    def __call__(self, x_TH: torch.Tensor, onto_TH: torch.Tensor | None = None) -> torch.Tensor: ...

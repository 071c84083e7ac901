"""Which tensors a model takes from a checkpoint: it is built without memory for weights, and what it asks for is noted.

Nothing is read. The list has what a model of any family takes, whatever its parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from engine.errors import ModelError
from engine.loading.weights import StoredTensor, Weights
from engine.models import registry
from kernels.backends import TorchOps

if TYPE_CHECKING:
    from engine.models.config import ModelConfig
    from kernels.block_weight import BlockWeight
    from kernels.linear_int8 import QuantizedWeight
    from kernels.types import HeadLinear


@dataclass(frozen=True)
class TakenTensor:
    """A tensor that a model asks for.

    Attributes:
        name: in the checkpoint.
        dtype: in which it is used, if it is not quantised.
        layer: the linear layer whose weight it is, which may be quantised; None if it is something else.
        is_table: rows of it are looked up.
        num_in_heads: its values as kernels.head_linear packs them, which are as many again for each arrangement of
            them; 0 if they are not packed so.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: str | None = None
    is_table: bool = False
    num_in_heads: int = 0


class TooManyTensorsError(ModelError):
    """A config asks for more tensors than a checkpoint has: millions of experts, say."""


def taken_tensors(config: ModelConfig, dtype: torch.dtype, most: float = math.inf) -> list[TakenTensor]:
    """What a model in this dtype takes, in that order; a tied embedding is there again as the weight of the head.

    Raises:
        TooManyTensorsError: it takes more than `most`.
    """
    weights = _NotingWeights(dtype, most)
    registry.model_class(config)(config, weights, _NotingOps(weights), max_seq_len=1)
    return [taken for taken, _ in weights.taken]


class _NotingWeights(Weights):
    """Hands out tensors without memory."""

    def __init__(self, dtype: torch.dtype, most: float) -> None:
        super().__init__(_NoTensors(), torch.device("meta"), dtype, fp8_block=(1, 1), progress=False)
        self.taken: list[tuple[TakenTensor, torch.Tensor]] = []
        self._most = most

    @override
    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._hand_out(TakenTensor(name, shape, dtype or self.dtype))

    @override
    def take_rows(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        return self._hand_out(TakenTensor(name, shape, self.dtype, is_table=True))

    @override
    def take_part(self, layer: str, shape: tuple[int, int]) -> torch.Tensor:
        return self._hand_out(TakenTensor(f"{layer}.weight", shape, self.dtype, layer))

    @override
    def as_linear(self, layer: str, stored: torch.Tensor | QuantizedWeight | BlockWeight) -> torch.Tensor:
        name = next(taken.name for taken, tensor in self.taken if tensor is stored)
        return self._hand_out(TakenTensor(name, tuple(stored.shape), self.dtype, layer))

    @override
    def finish(self) -> None:
        pass

    def pack_heads(self, weight_NKM: torch.Tensor) -> None:
        """Note that a view of a tensor is packed for head_linear."""
        number = next(n for n in reversed(range(len(self.taken))) if self.taken[n][1] is weight_NKM._base)
        taken, tensor = self.taken[number]
        self.taken[number] = replace(taken, num_in_heads=taken.num_in_heads + weight_NKM.numel()), tensor

    def _hand_out(self, taken: TakenTensor) -> torch.Tensor:
        if len(self.taken) >= self._most:
            raise TooManyTensorsError("config.json asks for more tensors than the checkpoint has")
        tensor = torch.empty(taken.shape, dtype=taken.dtype, device=self.device)
        self.taken.append((taken, tensor))
        return tensor


class _NotingOps(TorchOps):
    """Packs nothing."""

    def __init__(self, weights: _NotingWeights) -> None:
        super().__init__(weights.dtype)
        self._weights = weights

    @override
    def head_linear(self, weight_NKM: torch.Tensor) -> HeadLinear:
        self._weights.pack_heads(weight_NKM)
        return super().head_linear(weight_NKM)


class _NoTensors:
    """A source without tensors."""

    path = Path()

    def names(self) -> set[str]:
        return set()

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} is read from a source without tensors")

    def stored(self, name: str) -> StoredTensor:
        raise AssertionError(f"{name} is looked for in a source without tensors")

    def shard(self, name: str) -> str | None:
        raise AssertionError(f"{name} is looked for in a source without tensors")

    def release(self) -> None:
        """Nothing was read."""

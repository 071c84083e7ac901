"""How evenly experts are chosen: sums over the micro batches of a step, which the loop shows.

Layers record, the loop takes. With activation checkpointing a layer runs twice, and the second time is not recorded.

Shapes: E experts.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class LayerStatistics:
    """One layer's, since they were last taken.

    Attributes:
        arrived: choices of each expert, [E]; those dropped are included.
        num_dropped: choices that experts had no place for.
        balance_loss: summed over micro batches, without its factor; 1 in each is even.
        num_batches: micro batches.
    """

    arrived: list[int]
    num_dropped: int
    balance_loss: float
    num_batches: int

    @property
    def dropped_share(self) -> float:
        """Dropped choices of all choices."""
        return self.num_dropped / max(1, sum(self.arrived))

    @property
    def load(self) -> list[float]:
        """Each expert's share of all choices, times the number of experts: 1 is even."""
        total = max(1, sum(self.arrived))
        return [count * len(self.arrived) / total for count in self.arrived]


class RouterStatistics:
    """Of all layers of a model, or of a stage of it."""

    def __init__(self) -> None:
        self._layers: dict[int, LayerStatistics] = {}
        self._losses: dict[int, torch.Tensor] = {}
        self._is_paused = False

    def record(self, layer: int, arrived: list[int], num_dropped: int, balance_loss: torch.Tensor) -> None:
        """Add a micro batch."""
        if self._is_paused:
            return
        loss = balance_loss.detach()
        if (own := self._layers.get(layer)) is None:
            self._layers[layer], self._losses[layer] = LayerStatistics(list(arrived), num_dropped, 0.0, 1), loss
            return
        own.arrived = [a + b for a, b in zip(own.arrived, arrived, strict=True)]
        own.num_dropped += num_dropped
        own.num_batches += 1
        self._losses[layer] = self._losses[layer] + loss

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing meanwhile."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def take(self) -> dict[int, LayerStatistics]:
        """The sums of each layer, by its number; they begin anew."""
        taken, losses = self._layers, self._losses
        self._layers, self._losses = {}, {}
        for layer, statistics in taken.items():
            statistics.balance_loss = float(losses[layer])
        return dict(sorted(taken.items()))

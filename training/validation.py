"""The loss on held-out documents: the same micro batches each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.batch import Batch
    from training.objectives.objective import Objective
    from training.worker import Worker


class Validation:
    """Micro batches that are kept, and the steps after which their loss is taken."""

    def __init__(self, batches: Sequence[Batch], interval: int) -> None:
        self._batches, self.interval = batches, interval

    def loss(self, worker: Worker, objective: Objective) -> float:
        """The mean loss over all data ranks, without dropout and without dropped tokens; leaves no trace."""
        worker.module.eval()
        with torch.no_grad():
            sums = worker.forward(objective, [batch.to(worker.device) for batch in self._batches])
        worker.module.train()
        own = sum(map(objective.count, self._batches))
        total, count = worker.sum_over_data([sums["loss"], own])
        return total / max(count, 1)

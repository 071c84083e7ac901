"""What the heads without output tokens share: which rows they read, and the sums that a chunk adds to a sequence.

A whole prompt's hidden states are never held: the DynamicBatcher adds up the sums of its chunks (engine.sequence).

Shapes: R rows read, N sequences, X values of a sequence, H hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from engine.engine_info import PoolingTask
    from engine.models.decoder import Decoder
    from engine.step import StepPlan, StepResult


class PoolingHead(ABC):
    """Values of each row, added up by sequence: the last token's row alone, or the rows of all tokens."""

    task: ClassVar[PoolingTask]

    def __init__(self, model: Decoder) -> None:
        self._model = model

    @abstractmethod
    def values(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """The task's values of each row, [R, X]."""

    def rows(self, plan: StepPlan) -> list[int]:
        if all(item.pool is None for item in plan.scheduled):
            return []
        rows: list[int] = []
        stop = 0
        for item in plan.scheduled:
            first, stop = stop, stop + item.num_tokens
            if item.pool is not None and item.pool.task == self.task:
                rows += range(first, stop) if item.pool.pooling == "mean" else (stop - 1,)
        return rows

    def add(self, result: StepResult, plan: StepPlan, hidden_RH: torch.Tensor) -> None:
        items = [item for item in plan.scheduled if item.pool is not None and item.pool.task == self.task]
        lengths = [item.num_tokens if item.pool is not None and item.pool.pooling == "mean" else 1 for item in items]
        sums_NX = self.values(hidden_RH).double()
        if len(lengths) < len(sums_NX):
            sums_NX = torch.segment_reduce(sums_NX, "sum", lengths=torch.tensor(lengths, device=sums_NX.device))
        is_finite_N = sums_NX.isfinite().all(-1).tolist()
        for item, is_finite, sum_X in zip(items, is_finite_N, sums_NX.cpu().numpy(), strict=True):
            result.pooled[item.sequence_id] = sum_X.tobytes() if is_finite else None

"""What a rank runs for one micro batch: its layers, and on the last stage the objective's loss.

A module, so that FSDP2 sees all uses of its parameters, and torch.distributed.pipelining can call it. Tensors of the
batch do not travel: each stage reads the same micro batches, and gets only a number of one and hidden states.

Shapes: B rows, T padded tokens, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from training.worker import Sums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.batch import Batch
    from training.model.dynamic_moe import DynamicMoE
    from training.objectives.objective import Objective


class Stage(nn.Module):
    """A rank's part of the model under an objective."""

    def __init__(self, model: DynamicMoE, dtype: torch.dtype) -> None:
        """`dtype` is what autocast computes in; fp32 is no autocast."""
        super().__init__()
        self.part, self._dtype = model, dtype
        self._objective: Objective | None = None
        self._batches: Sequence[Batch] = ()
        self._scale = 1.0
        self._sums = Sums()

    def prepare(self, objective: Objective, batches: Sequence[Batch], scale: float) -> None:
        """Set what the next micro batches are, and what their losses are multiplied by."""
        self._objective, self._batches, self._scale = objective, batches, scale

    def forward(self, hidden_BTH: torch.Tensor | None = None, *, number: torch.Tensor) -> torch.Tensor:
        """Hidden states for the next stage, or the scaled loss; `number` is which micro batch it is."""
        batch = self._batches[int(number)]
        with torch.autocast(batch.targets_BT.device.type, self._dtype, enabled=self._dtype != torch.float32):
            hidden_BTH = self.part(batch.tokens, hidden_BTH)
            if not self.part.model.is_last:
                return hidden_BTH
            assert self._objective is not None
            loss = self._objective.loss(self.part, hidden_BTH, batch)
        self._sums.add(loss)
        return loss.sum * self._scale

    def take_sums(self) -> Mapping[str, float]:
        """Losses and metrics since they were last taken; empty on stages before the last one."""
        sums, self._sums = self._sums, Sums()
        return sums.values()

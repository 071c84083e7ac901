"""How sound a text is so far, by the reasoning head on the last token: the binary cross-entropy of all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from training.config import ReasoningSettings
from training.objectives.heads import head_values, labels_of
from training.objectives.objective import LossSum

if TYPE_CHECKING:
    import torch

    from training.batch import Batch
    from training.config import Settings
    from training.model.dynamic_moe import DynamicMoE


class Reasoning:
    """A logit for each row, whose label is 1 if the text is sound. `accuracy` is the share of rows told right."""

    def __init__(self, *, only_head: bool) -> None:
        self._only_head = only_head

    def count(self, batch: Batch) -> int:
        """Rows."""
        return len(labels_of(batch))

    def loss(self, model: DynamicMoE, hidden_BTH: torch.Tensor, batch: Batch) -> LossSum:
        """Summed over the rows."""
        values_B = head_values(model, hidden_BTH, batch, "reasoning", only_head=self._only_head)[:, 0]
        labels_B = labels_of(batch)
        right = ((values_B.detach() > 0) == (labels_B == 1)).sum().float()
        loss = F.binary_cross_entropy_with_logits(values_B, labels_B.float(), reduction="sum")
        return LossSum(loss, {"accuracy": right})


def make(settings: Settings) -> Reasoning:
    """By the objective's settings."""
    assert isinstance(settings.objective, ReasoningSettings)
    return Reasoning(only_head=settings.objective.train == "head")

"""Labels of texts, by the classification head on the last token: the cross-entropy of all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from training.config import ClassificationSettings
from training.objectives.heads import head_values, labels_of
from training.objectives.objective import LossSum

if TYPE_CHECKING:
    import torch

    from training.batch import Batch
    from training.config import Settings
    from training.model.dynamic_moe import DynamicMoE


class Classification:
    """One label of several for each row. The metric `accuracy` is the share of rows whose likeliest label is right."""

    def __init__(self, *, only_head: bool) -> None:
        self._only_head = only_head

    def count(self, batch: Batch) -> int:
        """Rows."""
        return len(labels_of(batch))

    def loss(self, model: DynamicMoE, hidden_BTH: torch.Tensor, batch: Batch) -> LossSum:
        """Summed over the rows."""
        logits_BL = head_values(model, hidden_BTH, batch, "classification", only_head=self._only_head)
        labels_B = labels_of(batch)
        right = (logits_BL.detach().argmax(-1) == labels_B).sum().float()
        return LossSum(F.cross_entropy(logits_BL, labels_B, reduction="sum"), {"accuracy": right})


def make(settings: Settings) -> Classification:
    """By the objective's settings."""
    assert isinstance(settings.objective, ClassificationSettings)
    return Classification(only_head=settings.objective.train == "head")

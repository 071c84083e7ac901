"""Next tokens of documents: the mean cross-entropy of all target tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.batch import IGNORED
from training.model.losses import cross_entropy
from training.objectives.objective import LossSum

if TYPE_CHECKING:
    import torch

    from training.batch import Batch
    from training.config import Settings
    from training.model.dynamic_moe import DynamicMoE


class LanguageModel:
    """The objective of pre-training; of chats too, whose targets are the assistant's tokens."""

    def count(self, batch: Batch) -> int:
        """Target tokens."""
        return int((batch.targets_BT != IGNORED).sum())

    def loss(self, model: DynamicMoE, hidden_BTH: torch.Tensor, batch: Batch) -> LossSum:
        """Cross-entropy, a part of the rows at a time."""
        return LossSum(cross_entropy(model, hidden_BTH, batch.targets_BT))


def make(_settings: Settings) -> LanguageModel:
    """There is nothing to set."""
    return LanguageModel()

"""The head that classifies: a logit for each label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.heads.pooling import PoolingHead

if TYPE_CHECKING:
    import torch


class ClassifyHead(PoolingHead):
    """A linear layer of the checkpoint (Decoder.heads)."""

    task = "classify"

    def values(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        return self._model.heads["classification"](hidden_RH)

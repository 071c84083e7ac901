"""The head that values: one logit, of how sound a text is so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.heads.pooling import PoolingHead

if TYPE_CHECKING:
    import torch


class ValueHead(PoolingHead):
    """A linear layer of the checkpoint (Decoder.heads)."""

    task = "value"

    def values(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        return self._model.heads["reasoning"](hidden_RH)

"""The head that embeds: hidden states after the final norm, as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.heads.pooling import PoolingHead

if TYPE_CHECKING:
    import torch


class EmbedHead(PoolingHead):
    """Needs no weights: every decoder has it."""

    task = "embed"

    def values(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        return hidden_RH

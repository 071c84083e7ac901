"""What every layer reads of a batch, made once a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from training.batch import TokenBatch
    from training.model.rotary import Rotary, RotaryTables
    from training.model.router_statistics import RouterStatistics


@dataclass(frozen=True, slots=True)
class BatchContext:
    """A micro batch, as layers see it.

    Attributes:
        tables: of the positions of a row.
        is_token_N: which of the B * T places are tokens and no padding; None if all are.
        num_tokens: of these.
        balance_loss_weight: the factor of the balancing losses.
        statistics: where routers record.
    """

    tables: RotaryTables
    is_token_N: torch.Tensor | None
    num_tokens: int
    balance_loss_weight: float
    statistics: RouterStatistics


def make_context(
    tokens: TokenBatch, rotary: Rotary, balance_loss_weight: float, statistics: RouterStatistics
) -> BatchContext:
    """The context of a batch."""
    rows, width = tokens.token_ids_BT.shape
    device, num_tokens = tokens.token_ids_BT.device, tokens.num_tokens
    is_token_N = None
    if num_tokens < rows * width:
        is_token_N = (torch.arange(width, device=device) < tokens.lengths_B[:, None]).flatten()
    return BatchContext(rotary.tables(width, device), is_token_N, num_tokens, balance_loss_weight, statistics)

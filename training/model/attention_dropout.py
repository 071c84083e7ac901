"""Attention with dropout on its weights, a part of the queries after the other: flash attention on CPUs has no dropout.

The scores of a part are computed again in the backward pass, so that only one part's are in memory.

Shapes: B rows, T tokens, Q query heads, K key heads, G = Q / K, D values of a head; q queries of a part, s keys that at
least one of them sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.model.visible_blocks import BlockPlan, block_plan

if TYPE_CHECKING:
    from kernels.attention_pattern import AttentionPattern

_PART = 64  # queries
_KEYS = 512  # their keys are so many, or twice or three times so many: memory of few sizes is used again


def attend_with_dropout(
    q_BTQD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKD: torch.Tensor, pattern: AttentionPattern, dropout: float
) -> torch.Tensor:
    """[B, T, Q, D]; `dropout` is the probability that a weight is dropped."""
    num_tokens = q_BTQD.shape[1]
    plan = block_plan(pattern, num_tokens)
    size = _PART if plan is None else plan.size
    parts = [
        checkpoint(_attend, q_BqQD, k_BTKD, v_BTKD, number * size, plan, dropout, use_reentrant=False)
        for number, q_BqQD in enumerate(q_BTQD.split(size, dim=1))
    ]
    return torch.cat(parts, dim=1)


def _attend(
    q_BqQD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTKD: torch.Tensor,
    start: int,
    plan: BlockPlan | None,
    dropout: float,
) -> torch.Tensor:
    """The part whose first query is `start`."""
    rows, num_queries, num_heads, dim = q_BqQD.shape
    keys_s, is_visible_qs = _visible(range(start, start + num_queries), k_BTKD.shape[1], plan, q_BqQD.device)
    q = q_BqQD.reshape(rows, num_queries, k_BTKD.shape[2], -1, dim).permute(0, 2, 3, 1, 4)  # B K G q D
    k, v = (x.index_select(1, keys_s).transpose(1, 2)[:, :, None] for x in (k_BTKD, v_BTKD))  # B K 1 s D
    scores = (q @ k.transpose(-1, -2)).float() * dim**-0.5
    weights = scores.masked_fill(~is_visible_qs, -torch.inf).softmax(-1)
    out = F.dropout(weights, dropout).to(v.dtype) @ v
    return out.permute(0, 3, 1, 2, 4).reshape(rows, num_queries, num_heads, dim)


def _visible(
    queries: range, num_tokens: int, plan: BlockPlan | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions with all those that these queries see, and which query sees which."""
    keys_s = torch.arange(-(-queries.stop // _KEYS) * _KEYS, device=device)[:num_tokens]
    if plan is not None:
        visible = plan.visible_nV[queries.start // plan.size].to(device)
        keys_s = (visible[visible >= 0, None] * plan.size + torch.arange(plan.size, device=device)).flatten()
        keys_s = keys_s[keys_s < queries.stop]
    distance_qs = torch.arange(queries.start, queries.stop, device=device)[:, None] - keys_s
    is_visible_qs = distance_qs >= 0
    if plan is not None and plan.window is not None:
        is_visible_qs &= distance_qs < plan.window
    return keys_s, is_visible_qs

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

from training.model.visible_blocks import block_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kernels.attention_pattern import AttentionPattern

_PART = 64  # queries


def attend_with_dropout(
    q_BTQD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKD: torch.Tensor, pattern: AttentionPattern, dropout: float
) -> torch.Tensor:
    """[B, T, Q, D]; `dropout` is the probability that a weight is dropped."""
    parts = []
    for start, end, keys_s, mask_qs in _parts(pattern, q_BTQD.shape[1]):
        keys, mask = keys_s.to(q_BTQD.device), mask_qs.to(q_BTQD.device)
        arguments = (q_BTQD[:, start:end], k_BTKD, v_BTKD, keys, mask, dropout)
        parts.append(checkpoint(_attend, *arguments, use_reentrant=False))
    return torch.cat(parts, dim=1)


def _parts(pattern: AttentionPattern, num_tokens: int) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Each part's first query and the one behind its last, the positions of its keys, and which query sees which."""
    plan = block_plan(pattern, num_tokens)
    size = _PART if plan is None else plan.size
    for number, start in enumerate(range(0, num_tokens, size)):
        end = min(start + size, num_tokens)
        if plan is None:
            keys_s = torch.arange(end)
        else:
            visible = plan.visible_nV[number]
            keys_s = (visible[visible >= 0, None] * size + torch.arange(size)).flatten()
            keys_s = keys_s[keys_s < end]
        distance_qs = torch.arange(start, end)[:, None] - keys_s
        is_visible = distance_qs >= 0
        if plan is not None and plan.window is not None:
            is_visible &= distance_qs < plan.window
        yield start, end, keys_s, is_visible


def _attend(
    q_BqQD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTKD: torch.Tensor,
    keys_s: torch.Tensor,
    mask_qs: torch.Tensor,
    dropout: float,
) -> torch.Tensor:
    rows, num_queries, num_heads, dim = q_BqQD.shape
    q = q_BqQD.reshape(rows, num_queries, k_BTKD.shape[2], -1, dim).permute(0, 2, 3, 1, 4)  # B K G q D
    k, v = (x.index_select(1, keys_s).transpose(1, 2)[:, :, None] for x in (k_BTKD, v_BTKD))  # B K 1 s D
    scores = (q @ k.transpose(-1, -2)).float() * dim**-0.5
    weights = scores.masked_fill(~mask_qs, -torch.inf).softmax(-1)
    out = F.dropout(weights, dropout).to(v.dtype) @ v
    return out.permute(0, 3, 1, 2, 4).reshape(rows, num_queries, num_heads, dim)

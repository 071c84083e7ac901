"""Attention, sequence by sequence and head by head, in fp32. Contract: kernels.paged_attention."""

from typing import NamedTuple

import torch

from kernels.attention_pattern import FULL, AttentionPattern, BlockSparseAttention, LocalAttention
from kernels.kv_cache import Cache, take, values_of
from kernels.paged_attention.batch import AttentionBatch


class Plan(NamedTuple):
    """A batch, and what its queries see."""

    batch: AttentionBatch
    pattern: AttentionPattern


class ReferenceAttention:
    """Softmax over the visible positions, from a mask that is made query by query."""

    reads_unwritten_slots = False

    def plan(self, batch: AttentionBatch, pattern: AttentionPattern = FULL) -> Plan:
        return Plan(batch, pattern)

    def forward(self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: Plan, scale: float) -> torch.Tensor:
        batch = plan.batch
        group = q_TND.shape[1] // values_of(k_cache).shape[1]
        out, first = torch.empty_like(q_TND), 0
        for i, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            queries = range(context_len - query_len, context_len)
            visible_QL = torch.stack([is_visible(plan.pattern, position, context_len) for position in queries])
            positions = torch.arange(context_len)
            blocks = positions[visible_QL.any(0)].div(batch.block_size, rounding_mode="floor").unique()
            ids = torch.tensor([batch.block_tables[i][block - batch.first_blocks[i]] for block in blocks.tolist()])
            read_P = positions[torch.isin(positions // batch.block_size, blocks)]
            keys_KPD, values_KPD = (
                take(cache, ids.to(q_TND.device), torch.float32).transpose(0, 1).flatten(1, 2)[:, : len(read_P)].float()
                for cache in (k_cache, v_cache)
            )
            hidden_QP = ~visible_QL[:, read_P].to(q_TND.device)
            for head in range(q_TND.shape[1]):
                query = q_TND[first : first + query_len, head].float()
                scores = query @ keys_KPD[head // group].T * scale
                weights = scores.masked_fill(hidden_QP, float("-inf")).softmax(-1)
                out[first : first + query_len, head] = (weights @ values_KPD[head // group]).to(out.dtype)
            first += query_len
        return out


def is_visible(pattern: AttentionPattern, position: int, context_len: int) -> torch.Tensor:
    """Whether the query at a position sees each of the positions, [context_len]."""
    positions = torch.arange(context_len)
    until_own = positions <= position
    match pattern:
        case LocalAttention(window):
            return until_own & (positions > position - window)
        case BlockSparseAttention(block_size):
            blocks = torch.tensor(pattern.visible_blocks(position // block_size))
            return until_own & torch.isin(positions // block_size, blocks)
        case _:
            return until_own

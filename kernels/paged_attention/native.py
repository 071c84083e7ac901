"""Attention in native code on a CPU (native.cpp). Contract: kernels.paged_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.attention_pattern import FULL, AttentionPattern, BlockSparseAttention, LocalAttention
from kernels.kv_cache import Cache
from kernels.paged_attention.batch import AttentionBatch

if TYPE_CHECKING:
    from kernels.native._kernels import AttentionPlan


class NativeAttention:
    """Flash attention over the blocks where they lie; a plan says how its work is shared out (plan.cpp)."""

    reads_unwritten_slots = False

    def plan(self, batch: AttentionBatch, pattern: AttentionPattern = FULL) -> AttentionPlan:
        sequences = batch.query_lens, batch.context_lens, batch.block_tables, batch.block_size, batch.first_blocks
        if isinstance(pattern, BlockSparseAttention):
            visible_blocks = pattern.table.rows(-(-max(batch.context_lens) // pattern.block_size))
            return native.library.block_sparse_attention_plan(*sequences, pattern.block_size, visible_blocks)
        window = pattern.window if isinstance(pattern, LocalAttention) else None
        return native.library.paged_attention_plan(*sequences, window)

    def forward(
        self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: AttentionPlan, scale: float
    ) -> torch.Tensor:
        return native.library.paged_attention(q_TND, k_cache, v_cache, plan, scale)

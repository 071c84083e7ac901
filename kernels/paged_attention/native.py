"""Attention in native code on a CPU (native.cpp). Contract: kernels.paged_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.attention_pattern import FULL, AttentionPattern
from kernels.kv_cache import Cache
from kernels.paged_attention.batch import AttentionBatch
from kernels.paged_attention.virtual_sequences import under_pattern

if TYPE_CHECKING:
    from kernels.native._kernels import AttentionPlan


class NativeAttention:
    """Flash attention over the blocks where they lie; a plan says how its work is shared out (plan.cpp)."""

    reads_unwritten_slots = False

    def plan(self, batch: AttentionBatch, pattern: AttentionPattern = FULL) -> AttentionPlan:
        batch = under_pattern(batch, pattern)
        if batch.window is not None or any(batch.first_blocks):
            raise NotImplementedError("windows in native code")
        return native.library.paged_attention_plan(
            batch.query_lens, batch.context_lens, batch.block_tables, batch.block_size
        )

    def forward(
        self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: AttentionPlan, scale: float
    ) -> torch.Tensor:
        return native.library.paged_attention(q_TND, k_cache, v_cache, plan, scale)

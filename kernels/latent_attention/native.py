"""Latent attention in native code on a CPU (native.cpp), without selections. Contract: kernels.latent_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.kv_cache import Cache
from kernels.paged_attention.batch import AttentionBatch

if TYPE_CHECKING:
    from kernels.native._kernels import AttentionPlan


class NativeLatentAttention:
    """Flash attention over the blocks where they lie; a position's latent is read once for all heads of 8 tokens."""

    reads_unwritten_slots = False

    def plan(self, batch: AttentionBatch) -> AttentionPlan:
        return native.library.latent_attention_plan(
            batch.query_lens, batch.context_lens, batch.block_tables, batch.block_size
        )

    def forward(
        self, q_TNX: torch.Tensor, cache: Cache, plan: AttentionPlan, scale: float, value_dim: int, selection: None
    ) -> torch.Tensor:
        assert selection is None, "a selection is for kernels.latent_attention.torch_ops"
        return native.library.latent_attention(q_TNX, cache, plan, scale, value_dim)

"""Latent attention in native code on a CPU (native.cpp). Contract: kernels.latent_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.kv_cache import Cache
from kernels.latent_attention.torch_ops import attend_prefill
from kernels.lightning_indexer.native import SparsePlan
from kernels.paged_attention.batch import AttentionBatch
from kernels.paged_attention.torch_ops import plan_prefills

if TYPE_CHECKING:
    from kernels.lightning_indexer.torch_ops import Selection
    from kernels.native._kernels import AttentionPlan


class NativeLatentAttention:
    """Flash attention over the blocks where they lie; a position's latent is read once for all heads of 8 tokens."""

    reads_unwritten_slots = False

    def plan(self, batch: AttentionBatch) -> AttentionPlan:
        return native.library.latent_attention_plan(
            batch.query_lens, batch.context_lens, batch.block_tables, batch.block_size, batch.first_blocks
        )

    def forward(
        self, q_TNX: torch.Tensor, cache: Cache, plan: AttentionPlan, scale: float, value_dim: int, selection: None
    ) -> torch.Tensor:
        assert selection is None, "a selection is for NativeSparseLatentAttention"
        return native.library.latent_attention(q_TNX, cache, plan, scale, value_dim)


class NativeSparseLatentAttention:
    """The same over selected positions: natively where sequences decode, by torch with a mask in prefill chunks.

    A selected position is to native code a block of one slot, so that a selection is a block table.
    """

    reads_unwritten_slots = False

    def __init__(self) -> None:
        self._dense = NativeLatentAttention()

    def plan(self, batch: AttentionBatch) -> SparsePlan:
        num_decodes = batch.num_decodes
        return SparsePlan(
            whole=self._dense.plan(batch),
            decodes=self._dense.plan(batch.only(list(range(num_decodes)))) if num_decodes else None,
            num_decodes=num_decodes,
            longest_decode=max(batch.context_lens[:num_decodes], default=0),
            prefills=plan_prefills(batch, masked=False),
        )

    def forward(
        self,
        q_TNX: torch.Tensor,
        cache: Cache,
        plan: SparsePlan,
        scale: float,
        value_dim: int,
        selection: Selection | None,
    ) -> torch.Tensor:
        if selection is None:
            return self._dense.forward(q_TNX, cache, plan.whole, scale, value_dim, None)
        assert isinstance(cache, torch.Tensor), "the engine refuses a quantised cache for a model with an indexer"
        out = q_TNX.new_empty(*q_TNX.shape[:2], value_dim)
        if plan.decodes is not None:
            (positions,), rows = selection.positions, slice(plan.num_decodes)
            out[rows] = (
                native.library.latent_attention(q_TNX[rows], cache, plan.decodes, scale, value_dim)
                if positions is None
                else native.library.sparse_latent_attention(
                    q_TNX[rows], cache, plan.decodes, positions, scale, value_dim
                )
            )
        for prefill, visible in zip(plan.prefills, selection.visible, strict=True):
            rows = slice(prefill.first, prefill.last)
            out[rows] = attend_prefill(q_TNX[rows], cache, prefill, visible, scale, value_dim)
        return out

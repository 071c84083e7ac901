"""Which sequences of a step are attended absorbed and which expanded (the two forms of engine.models.mla).

A pair of query and position costs 2C + R products in the absorbed form, and D + R + V in the expanded form. To expand a
position costs C (D + V) products, once for all queries of the step. So expansion pays from C (D + V) / (2C - D - V)
queries on: 171 with DeepSeek's sizes.

Sizes: C kv_lora_rank, D qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from engine.models.config import MLAConfig, ModelConfig
    from kernels.ops import Ops
    from kernels.paged_attention import AttentionBatch


@dataclass(frozen=True, slots=True)
class ExpandedChunk:
    """A sequence that is attended expanded: rows first to last of the step, over context_len positions."""

    first: int
    last: int
    context_len: int
    block_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class MLAPlan:
    """How the sequences of a step are attended.

    Attributes:
        absorbed: the kernel's plan for the absorbed sequences; None if there are none.
        absorbed_rows: rows of the absorbed sequences in the step; None if all rows are absorbed.
        expanded: the other sequences.
    """

    absorbed: Any
    absorbed_rows: torch.Tensor | None
    expanded: list[ExpandedChunk]

    @property
    def is_capturable(self) -> bool:
        """Whether a captured step can be replayed with this plan: torch computes parts of the expanded form."""
        return not self.expanded

    def assign(self, other: MLAPlan) -> None:
        """Copy another capturable plan into the memory that captured kernels read."""
        self.absorbed.assign(other.absorbed)


def make_plan(config: ModelConfig, ops: Ops, batch: AttentionBatch) -> MLAPlan:
    """The plan of a step. With an indexer all sequences are absorbed."""
    assert config.mla is not None
    min_queries = _min_expanded_queries(config.mla)
    if config.indexer is not None:
        return MLAPlan(ops.sparse_latent_attention.plan(batch), None, [])
    if max(batch.query_lens) < min_queries:
        return MLAPlan(ops.latent_attention.plan(batch), None, [])
    expanded: list[ExpandedChunk] = []
    absorbed: list[int] = []
    rows: list[int] = []
    first = 0
    for i, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
        if query_len >= min_queries:
            table = batch.block_tables[i][: -(-context_len // batch.block_size)]
            block_ids = torch.tensor(table, device=batch.device)
            expanded.append(ExpandedChunk(first, first + query_len, context_len, block_ids))
        else:
            absorbed.append(i)
            rows += range(first, first + query_len)
        first += query_len
    if not absorbed:
        return MLAPlan(None, None, expanded)
    plan = ops.latent_attention.plan(batch.only(absorbed))
    return MLAPlan(plan, torch.tensor(rows, device=batch.device), expanded)


def _min_expanded_queries(mla: MLAConfig) -> float:
    """Products to expand one position, divided by the products that each query then saves on it."""
    if not mla.can_expand:
        return math.inf
    heads = mla.qk_nope_head_dim + mla.v_head_dim
    return mla.kv_lora_rank * heads / max(2 * mla.kv_lora_rank - heads, 1)

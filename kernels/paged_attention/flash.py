"""Attention through the flash-attn package on a GPU (Dao 2023). Contract: kernels.paged_attention.

flash-attn's own paged kernel needs blocks of 256 tokens. To allow small blocks, the blocks of a step are gathered into
a packed tensor [sum of context_lens, K, D] for the variable-length kernel.
"""

import itertools
from dataclasses import dataclass

import torch

from kernels.kv_cache import Cache, Int8Cache
from kernels.paged_attention.batch import AttentionBatch


@dataclass(frozen=True, slots=True)
class _Plan:
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    blocks: torch.Tensor  # [sum of context_lens]
    offsets: torch.Tensor  # [sum of context_lens], slots within blocks


class FlashAttention:
    """Gather by position, then flash_attn_varlen_func, whose causal mask is aligned to the last query."""

    reads_unwritten_slots = False

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func

        self._attend = flash_attn_varlen_func

    def plan(self, batch: AttentionBatch) -> _Plan:
        def cumulative(lens: list[int]) -> torch.Tensor:
            return torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=batch.device)

        positions = [torch.arange(context_len) for context_len in batch.context_lens]
        blocks = [
            torch.tensor(table)[position // batch.block_size]
            for table, position in zip(batch.block_tables, positions, strict=True)
        ]
        return _Plan(
            cu_seqlens_q=cumulative(batch.query_lens),
            cu_seqlens_k=cumulative(batch.context_lens),
            max_seqlen_q=max(batch.query_lens),
            max_seqlen_k=max(batch.context_lens),
            blocks=torch.cat(blocks).to(batch.device),
            offsets=(torch.cat(positions) % batch.block_size).to(batch.device),
        )

    def forward(self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: _Plan, scale: float) -> torch.Tensor:
        assert not isinstance(k_cache, Int8Cache), "the engine refuses an int8 cache for flash-attn"
        assert not isinstance(v_cache, Int8Cache), "the engine refuses an int8 cache for flash-attn"
        out: torch.Tensor = self._attend(
            q_TND,
            k_cache[plan.blocks, :, plan.offsets],
            v_cache[plan.blocks, :, plan.offsets],
            plan.cu_seqlens_q,
            plan.cu_seqlens_k,
            plan.max_seqlen_q,
            plan.max_seqlen_k,
            softmax_scale=scale,
            causal=True,
        )
        return out

"""Attention through the flash-attn package on a GPU (Dao 2023). Contract: kernels.paged_attention.

flash-attn's own paged kernel needs blocks of 256 tokens. To allow small blocks, the blocks of a step are gathered into
a packed tensor [P, K, D] for the variable-length kernel: of each sequence, the P positions from the first block on that
a query sees.
"""

import itertools
from dataclasses import dataclass

import torch

from kernels.attention_pattern import FULL, AttentionPattern
from kernels.kv_cache import Cache
from kernels.paged_attention.batch import AttentionBatch
from kernels.paged_attention.virtual_sequences import under_pattern


@dataclass(frozen=True, slots=True)
class _Plan:
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    blocks_P: torch.Tensor
    slots_P: torch.Tensor  # within blocks
    window_size: tuple[int, int]  # positions before and behind a query's own; -1: all


class FlashAttention:
    """Gather by position, then flash_attn_varlen_func, whose causal mask is aligned to the last query."""

    reads_unwritten_slots = False

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func

        self._attend = flash_attn_varlen_func

    def plan(self, batch: AttentionBatch, pattern: AttentionPattern = FULL) -> _Plan:
        batch = under_pattern(batch, pattern)

        def cumulative(lens: list[int]) -> torch.Tensor:
            return torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=batch.device)

        sequences = range(len(batch.query_lens))
        num_read = [batch.num_read(i) for i in sequences]
        positions = [torch.arange(count) for count in num_read]
        blocks = [torch.tensor(batch.read_blocks(i))[positions[i] // batch.block_size] for i in sequences]
        return _Plan(
            cu_seqlens_q=cumulative(batch.query_lens),
            cu_seqlens_k=cumulative(num_read),
            max_seqlen_q=max(batch.query_lens),
            max_seqlen_k=max(num_read),
            blocks_P=torch.cat(blocks).to(batch.device),
            slots_P=(torch.cat(positions) % batch.block_size).to(batch.device),
            window_size=(-1, -1) if batch.window is None else (batch.window - 1, 0),
        )

    def forward(self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: _Plan, scale: float) -> torch.Tensor:
        assert isinstance(k_cache, torch.Tensor), "the engine refuses a quantised cache for flash-attn"
        assert isinstance(v_cache, torch.Tensor), "the engine refuses a quantised cache for flash-attn"
        out: torch.Tensor = self._attend(
            q_TND,
            k_cache[plan.blocks_P, :, plan.slots_P],
            v_cache[plan.blocks_P, :, plan.slots_P],
            plan.cu_seqlens_q,
            plan.cu_seqlens_k,
            plan.max_seqlen_q,
            plan.max_seqlen_k,
            softmax_scale=scale,
            causal=True,
            window_size=plan.window_size,
        )
        return out

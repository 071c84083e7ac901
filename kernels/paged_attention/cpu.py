"""Attention in native code on a CPU (cpu.cpp). Contract: kernels.paged_attention."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from kernels.native import FLOAT, INT, POINTER, function
from kernels.paged_attention.batch import AttentionBatch

HEAD_DIMS = (16, 32, 48, 64, 80, 96, 112, 128)  # those that cpu.cpp is compiled for
_TILE_TOKENS = 8  # of one sequence, computed by one thread at a time


@dataclass(frozen=True, slots=True)
class _Plan:
    """Attributes of one step.

    Attributes:
        block_tables: [sequences, most blocks], int32, the ends unused.
        tiles: [tiles, 4], int32: sequence, first token of the packed batch, tokens, position of the first.
    """

    block_tables: torch.Tensor
    tiles: torch.Tensor


class CPUAttention:
    """Online softmax over the blocks where they lie; nothing is gathered."""

    reads_unwritten_slots = False

    def __init__(self, dtype: torch.dtype) -> None:
        pointers, sizes = [POINTER] * 4, [INT] * 5
        self._call = function(
            "paged_attention", dtype, POINTER, INT, *pointers[:3], POINTER, INT, POINTER, *sizes, FLOAT
        )

    def plan(self, batch: AttentionBatch) -> _Plan:
        used = [-(-context_len // batch.block_size) for context_len in batch.context_lens]
        width = max(used)
        tables = [table[:n] + [0] * (width - n) for table, n in zip(batch.block_tables, used, strict=True)]
        tiles = []
        first_tokens = itertools.accumulate(batch.query_lens, initial=0)
        for seq, (first, query_len, context_len) in enumerate(
            zip(first_tokens, batch.query_lens, batch.context_lens, strict=False)
        ):
            for start in range(0, query_len, _TILE_TOKENS):
                num_tokens = min(_TILE_TOKENS, query_len - start)
                tiles.append((seq, first + start, num_tokens, context_len - query_len + start))
        return _Plan(torch.tensor(tables, dtype=torch.int32), torch.tensor(tiles, dtype=torch.int32))

    def forward(
        self, q_TND: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, plan: _Plan, scale: float
    ) -> torch.Tensor:
        num_tokens, num_heads, dim = q_TND.shape
        if q_TND.stride()[1:] != (dim, 1):
            q_TND = q_TND.contiguous()
        out = torch.empty(num_tokens, num_heads, dim, dtype=q_TND.dtype)
        _, num_kv_heads, block_size, _ = k_cache.shape
        refused = self._call(
            q_TND.data_ptr(),
            q_TND.stride(0),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            out.data_ptr(),
            plan.block_tables.data_ptr(),
            plan.block_tables.shape[1],
            plan.tiles.data_ptr(),
            len(plan.tiles),
            num_heads,
            num_kv_heads,
            block_size,
            dim,
            scale,
        )
        assert not refused, f"head_dim {dim} is not among those compiled"
        return out

"""Attention in native code on a CPU (native.cpp). Contract: kernels.paged_attention.

The plan cuts a step into tasks, each for one thread and key head: positions into spans of 1,024, whose results are
merged, where a decoding sequence or up to 64 tokens of a chunk read a long context; a longer chunk's tokens into groups
of 64. A task for many spans sums them up one by one in the same order, so it does not matter how a sequence is cut.
"""

from __future__ import annotations

import ctypes

import torch

from kernels.kv_cache import Cache, Int8Cache, scales_of, values_of
from kernels.native import FLOAT, INT, POINTER, address, function
from kernels.paged_attention.batch import AttentionBatch

_TOKENS = 64  # of a chunk, in a task
_SPAN = 1024  # positions in a task, where there are few tokens; a multiple of the kernel's tile
_PARTIALS = 256  # of a chunk at most: memory for tokens times spans
_PACKING = 8  # what a position costs beside its products, in tokens


class _Lists(ctypes.Structure):
    """plan.h's Plan."""

    _fields_ = (
        ("block_tables", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("tasks", ctypes.c_void_p),
        ("num_tasks", ctypes.c_int64),
        ("merges", ctypes.c_void_p),
        ("num_merges", ctypes.c_int64),
        ("num_partials", ctypes.c_int64),
        ("span", ctypes.c_int64),
    )


class Plan:
    """What all layers of a step share, where native functions find it: at `address`."""

    def __init__(
        self, block_tables: torch.Tensor, tasks: torch.Tensor, merges: torch.Tensor, num_partials: int, span: int
    ) -> None:
        """All int32.

        Args:
            block_tables: [sequences, most blocks], the ends unused.
            tasks: [tasks, 7]: sequence, first token of the packed batch, tokens, position of the first, positions from
                and to, number of the partial result or -1; heaviest first.
            merges: [merges, 4]: token, first partial result, partial results, step from one to the next.
            num_partials: of all tasks.
            span: positions that are summed up by themselves, so that it does not matter which task sums them up.
        """
        self._held = (block_tables, tasks, merges)
        self._lists = _Lists(
            block_tables.data_ptr(),
            block_tables.shape[1],
            tasks.data_ptr(),
            tasks.shape[0],
            merges.data_ptr(),
            merges.shape[0],
            num_partials,
            span,
        )
        self.address = ctypes.addressof(self._lists)

    def become(self, other: Plan) -> bool:
        """Hold what another plan holds, at the same address; True, as it always can."""
        self._held = other._held
        ctypes.pointer(self._lists)[0] = other._lists
        return True


def make_plan(batch: AttentionBatch, tokens: int, span: int) -> Plan:
    """Cut a step into tasks: chunks into groups of `tokens`, and what is no more than a group into spans of `span`."""
    used = [-(-context_len // batch.block_size) for context_len in batch.context_lens]
    width = max(used)
    tables = [table[:n] + [0] * (width - n) for table, n in zip(batch.block_tables, used, strict=True)]
    tasks: list[tuple[int, ...]] = []
    merges: list[tuple[int, ...]] = []
    num_partials = first = 0
    for seq, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
        start = context_len - query_len
        begins = range(0, context_len, span)
        if len(begins) > 1 and (query_len == 1 or query_len <= min(tokens, _PARTIALS // len(begins))):
            merges += [(first + i, num_partials + i, len(begins), query_len) for i in range(query_len)]
            for begin in begins:
                tasks.append((seq, first, query_len, start, begin, min(begin + span, context_len), num_partials))
                num_partials += query_len
        else:
            for i in range(0, query_len, tokens):
                count = min(tokens, query_len - i)
                tasks.append((seq, first + i, count, start + i, 0, start + i + count, -1))
        first += query_len
    tasks.sort(key=lambda task: -(task[2] + _PACKING) * (task[5] - task[4]))
    tables_SB, tasks_N7, merges_M4 = (torch.tensor(rows, dtype=torch.int32) for rows in (tables, tasks, merges))
    return Plan(tables_SB, tasks_N7, merges_M4, num_partials, span)


class CPUAttention:
    """Flash attention over the blocks where they lie."""

    reads_unwritten_slots = False

    def __init__(self, dtype: torch.dtype) -> None:
        arguments = (POINTER, INT, *[POINTER] * 6, INT, INT, INT, INT, FLOAT)
        self._call, self._call_int8 = (
            function(name, dtype, *arguments) for name in ("paged_attention", "paged_attention_int8")
        )

    def plan(self, batch: AttentionBatch) -> Plan:
        return make_plan(batch, _TOKENS, _SPAN)

    def forward(self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: Plan, scale: float) -> torch.Tensor:
        num_tokens, num_heads, dim = q_TND.shape
        if q_TND.stride()[1:] != (dim, 1):
            q_TND = q_TND.contiguous()
        out = torch.empty(num_tokens, num_heads, dim, dtype=q_TND.dtype)
        _, num_kv_heads, block_size, _ = values_of(k_cache).shape
        call = self._call_int8 if isinstance(k_cache, Int8Cache) else self._call
        call(
            q_TND.data_ptr(),
            q_TND.stride(0),
            values_of(k_cache).data_ptr(),
            values_of(v_cache).data_ptr(),
            address(scales_of(k_cache)),
            address(scales_of(v_cache)),
            out.data_ptr(),
            plan.address,
            num_heads,
            num_kv_heads,
            block_size,
            dim,
            scale,
        )
        return out

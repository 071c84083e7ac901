"""Batches for attention, over a cache in which every slot that nobody may read is NaN, and the backends to run them."""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from kernels.attention_pattern import FULL, AttentionPattern
from kernels.kv_cache import Cache
from kernels.paged_attention import AttentionBatch, PagedAttention
from kernels.paged_attention.flash import FlashAttention
from kernels.paged_attention.native import NativeAttention
from kernels.paged_attention.torch_ops import TorchAttention
from tests.kernels.compare import Layout, natives, randn


class AttentionOfRows(NativeAttention):
    """Given caches in rows, as its reference is."""

    def forward(self, q: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: Any, scale: float) -> torch.Tensor:
        layout = Layout(q.dtype)
        return super().forward(q, layout.keys(k_cache), layout.values(v_cache), plan, scale)


NATIVE = {isa: lambda _, backend=backend: backend for isa, backend in natives(AttentionOfRows()).items()}
BACKENDS = {"torch": TorchAttention, "flash": lambda _: FlashAttention(), **NATIVE}
# (query_lens, context_lens); decoding sequences come first
BATCHES = {
    "one decode": ((1,), (1,)),
    "decodes": ((1, 1, 1, 1), (5, 16, 17, 33)),
    "decodes of very different lengths": ((1,) * 9, (1, 700, 3, 130, 64, 65, 700, 2, 260)),
    "one prefill": ((19,), (19,)),
    "prefills": ((5, 1, 40), (5, 1, 40)),
    "mixed": ((1, 1, 1, 23, 6), (40, 2, 111, 23, 6)),
    "chunks with context": ((7, 33, 2), (50, 65, 3)),
    "odd lengths": ((1, 15, 16, 17, 63, 64, 65), (1000, 15, 16, 273, 63, 64, 1065)),
    "longer than a span of a split": ((1, 1, 1, 1, 300), (1024, 1025, 2047, 2600, 300)),
    "short chunks of long contexts": ((3, 64, 1, 20, 8), (1030, 2100, 1500, 1025, 600)),
    "everything": ((1, 1, 1, 12, 1, 30, 3), (9, 300, 31, 12, 48, 75, 3)),
}


@dataclass(frozen=True, eq=False)
class Case:
    batch: AttentionBatch
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    keys: list[torch.Tensor]  # of each sequence, [context_len, K, D]
    values: list[torch.Tensor]

    def run(self, backend: PagedAttention, pattern: AttentionPattern = FULL) -> torch.Tensor:
        caches = self.k_cache.clone(), self.v_cache.clone()
        out = backend.forward(self.q, *caches, backend.plan(self.batch, pattern), self.q.shape[-1] ** -0.5)
        assert torch.equal(caches[0].nan_to_num(7), self.k_cache.nan_to_num(7)), "the cache was written"
        return out


@functools.cache
def make_case(
    query_lens: tuple[int, ...],
    context_lens: tuple[int, ...],
    *,
    num_kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Blocks lie scattered; foreign blocks, and blocks allocated ahead of the context, hold NaN."""
    num_blocks = [-(-n // block_size) for n in context_lens]
    ahead = [i % 3 for i in range(len(context_lens))]  # chunked prefill owns blocks that it has not reached
    total = sum(num_blocks) + sum(ahead) + 5
    ids = torch.randperm(total, generator=torch.Generator().manual_seed(1)).tolist()
    shape = (total, num_kv_heads, block_size, head_dim)
    caches = torch.full(shape, float("nan"), dtype=dtype), torch.full(shape, float("nan"), dtype=dtype)
    tables, contents = [], ([], [])
    for i, context_len in enumerate(context_lens):
        table = [ids.pop() for _ in range(num_blocks[i] + ahead[i])]
        position = torch.arange(context_len)
        owned = torch.tensor(table)[position // block_size]
        for j, cache in enumerate(caches):
            cache[table[: num_blocks[i]]] = 0  # the last block's free slots hold no NaN in production
            contents[j].append(randn(context_len, num_kv_heads, head_dim, dtype=dtype, seed=2 * i + j))
            cache[owned, :, position % block_size] = contents[j][i]
        tables.append(table)
    wide = randn(sum(query_lens), num_kv_heads * (group + 1), head_dim, dtype=dtype, seed=99)
    q = wide[:, : num_kv_heads * group]  # a view, as the model passes: queries and keys are rotated as one tensor
    batch = AttentionBatch(list(query_lens), list(context_lens), tables, block_size, torch.device("cpu"))
    return Case(batch, q, *caches, *contents)

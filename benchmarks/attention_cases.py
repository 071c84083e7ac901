"""Cases of attention, and of writing the KV cache. Caches are larger than the processor's, and blocks are scattered."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from benchmarks.kernel_case import Case, round_robin
from engine.kv_cache_pool import CacheLayout, KVCachePool
from kernels.attention_pattern import FULL
from kernels.kv_cache import values_of
from kernels.packed_rows import PackedRow
from kernels.paged_attention import AttentionBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernels.attention_pattern import AttentionPattern
    from kernels.kv_cache import Cache
    from kernels.ops import Ops

_CPU = torch.device("cpu")
_BLOCK = 16


@dataclass(frozen=True)
class Step:
    """Number of queries and of positions (queries included) of each sequence in a step."""

    query_lens: list[int]
    context_lens: list[int]

    def batch(self, seed: int = 0) -> tuple[AttentionBatch, int]:
        """A batch with scattered blocks, and the number of blocks."""
        used = [-(-context_len // _BLOCK) for context_len in self.context_lens]
        ids = torch.randperm(sum(used), generator=torch.Generator().manual_seed(seed)).tolist()
        tables = [[ids.pop() for _ in range(count)] for count in used]
        return AttentionBatch(self.query_lens, self.context_lens, tables, _BLOCK, _CPU), sum(used)

    def num_pairs(self, pattern: AttentionPattern = FULL) -> int:
        """Number of pairs of a query and a visible position."""
        return sum(itertools.starmap(pattern.num_pairs, zip(self.query_lens, self.context_lens, strict=True)))

    def num_read(self, pattern: AttentionPattern = FULL) -> int:
        """Number of visible positions."""
        return sum(itertools.starmap(pattern.num_read, zip(self.query_lens, self.context_lens, strict=True)))


def _caches(layout: CacheLayout, num_blocks: int) -> list[tuple[Cache, ...]]:
    """KV caches with random values, for as many layers as fit in 256 MB."""
    num_layers = max(1, (256 << 20) // (layout.bytes_per_block * num_blocks))
    pool = KVCachePool(replace(layout, num_layers=num_layers), num_blocks, _CPU)
    for layer in pool.layers:
        for cache in layer:
            if isinstance(cache, torch.Tensor):
                cache.copy_(torch.randint(-127, 128, cache.shape[1:]) / 64)
            else:
                cache.values.copy_(torch.randint(-127, 128, cache.values.shape[1:], dtype=torch.int8))
                cache.scales.fill_(1 / 64)
    return pool.layers


def _kv_layout(num_kv_heads: int, dim: int, dtype: torch.dtype, kind: str) -> CacheLayout:
    """One layer's keys and values: `auto`, `int8` or `int4`, as --kv-cache-dtype says it."""
    return CacheLayout(
        ((num_kv_heads, dim), (num_kv_heads, dim)),
        1,
        _BLOCK,
        dtype,
        scales=(1, 1) if kind == "int8" else None,
        packed=(PackedRow(dim, 5), PackedRow(dim, 4)) if kind == "int4" else None,
    )


def paged(
    name: str,
    step: Step,
    num_heads: int,
    num_kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    *,
    kind: str = "auto",
    pattern: AttentionPattern = FULL,
) -> Case:
    """Attention over keys and values. Calls take blocks from different places in turn, so as to read from memory."""
    layout = _kv_layout(num_kv_heads, dim, dtype, kind)
    num_bytes = step.num_read(pattern) * layout.entry_size

    def make(ops: Ops) -> Callable[[], object]:
        num_blocks = step.batch()[1]
        layers = _caches(layout, num_blocks)
        q_TND = torch.randn(sum(step.query_lens), num_heads, dim).to(dtype)
        num_plans = 1 if pattern == FULL else min(64, -(-(256 << 20) // num_bytes))
        plans = [ops.paged_attention.plan(step.batch(seed)[0], pattern) for seed in range(num_plans)]
        calls = [(*layers[i % len(layers)], plans[i % num_plans]) for i in range(max(len(layers), num_plans))]
        return round_robin(calls, lambda k, v, plan: ops.paged_attention.forward(q_TND, k, v, plan, dim**-0.5))

    return Case(name, make, num_bytes, 4.0 * step.num_pairs(pattern) * num_heads * dim)


def latent(
    name: str, step: Step, num_heads: int, latent_dim: int, rotary_dim: int, dtype: torch.dtype, *, kind: str = "auto"
) -> Case:
    """Attention over latents, absorbed."""
    batch, num_blocks = step.batch()
    width = latent_dim + rotary_dim
    scales = (2,) if kind == "int8" else None
    packed = (PackedRow(latent_dim, 4, rotary_dim),) if kind == "int4" else None
    layout = CacheLayout(((1, width),), 1, _BLOCK, dtype, scales, packed)

    def make(ops: Ops) -> Callable[[], object]:
        layers = _caches(layout, num_blocks)
        q_TNX = torch.randn(sum(step.query_lens), num_heads, width).to(dtype)
        plan, scale = ops.latent_attention.plan(batch), width**-0.5
        return round_robin(
            layers, lambda cache: ops.latent_attention.forward(q_TNX, cache, plan, scale, latent_dim, None)
        )

    flops = 2.0 * step.num_pairs() * num_heads * (width + latent_dim)
    return Case(name, make, float(sum(step.context_lens) * layout.entry_size), flops)


def selected(name: str, step: Step, dtype: torch.dtype, topk: int = 2048) -> Case:
    """The indexer, or the attention over what it selects, with V3.2's sizes."""
    num_heads, width, latent_dim, num_index_heads, index_dim = 128, 576, 512, 64, 128
    batch, num_blocks = step.batch()
    num_tokens = sum(step.query_lens)

    def make(ops: Ops) -> Callable[[], object]:
        layers = _caches(CacheLayout(((1, width), (1, index_dim)), 1, _BLOCK, dtype), num_blocks)
        q_TNX = torch.randn(num_tokens, num_heads, width).to(dtype)
        weights_TH = torch.randn(num_tokens, num_index_heads)
        q_THI = torch.randn(num_tokens, num_index_heads, index_dim).to(dtype)
        attention = ops.sparse_latent_attention
        plan = attention.plan(batch)
        if name.startswith("lightning_indexer"):
            return round_robin(layers, lambda _, keys: ops.lightning_indexer(q_THI, weights_TH, keys, plan, topk))
        selection = ops.lightning_indexer(q_THI, weights_TH, values_of(layers[0][1]), plan, topk)
        return round_robin(
            layers, lambda cache, _: attention.forward(q_TNX, cache, plan, width**-0.5, latent_dim, selection)
        )

    if name.startswith("lightning_indexer"):
        return Case(
            name,
            make,
            float(step.num_read() * index_dim * dtype.itemsize),
            2.0 * step.num_pairs() * num_index_heads * index_dim,
        )
    flops = 2.0 * num_tokens * topk * num_heads * (width + latent_dim)
    return Case(name, make, float(num_tokens * topk * width * dtype.itemsize), flops)


def causal(
    name: str, num_queries: int, context_len: int, num_heads: int, dim: int, value_dim: int, dtype: torch.dtype
) -> Case:
    """Attention over keys and values that lie in a row."""

    def make(ops: Ops) -> Callable[[], object]:
        q_QNX, k_LNX, v_LNV = (
            torch.randn(tokens, num_heads, size).to(dtype)
            for tokens, size in ((num_queries, dim), (context_len, dim), (context_len, value_dim))
        )
        return lambda: ops.causal_attention(q_QNX, k_LNX, v_LNV, dim**-0.5)

    flops = 2.0 * Step([num_queries], [context_len]).num_pairs() * num_heads * (dim + value_dim)
    return Case(name, make, context_len * num_heads * (dim + value_dim) * dtype.itemsize, flops)


def store(
    name: str, num_tokens: int, num_heads: int, num_kv_heads: int, dim: int, dtype: torch.dtype, *, kind: str = "auto"
) -> Case:
    """Queries and keys rotated, keys and values written to scattered slots."""

    def make(ops: Ops) -> Callable[[], object]:
        layers = _caches(_kv_layout(num_kv_heads, dim, dtype, kind), 4096)
        qkv_TXD = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, dim).to(dtype)
        cos_TD, sin_TD = torch.rand(num_tokens, dim), torch.rand(num_tokens, dim)
        slot_mapping_T = torch.randperm(4096)[:num_tokens] * _BLOCK + torch.randint(_BLOCK, (num_tokens,))
        return round_robin(layers, lambda k, v: ops.rotate_and_store(qkv_TXD, cos_TD, sin_TD, k, v, slot_mapping_T))

    return Case(name, make, 2.0 * num_tokens * (num_heads + 2 * num_kv_heads) * dim * dtype.itemsize, 0.0)

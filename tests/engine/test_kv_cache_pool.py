"""The KV cache's memory, and that idle moments make it ready."""

import mmap
import resource

import pytest
import torch

from engine import kv_cache_pool
from engine.kv_cache_pool import CacheLayout, KVCachePool
from kernels.kv_cache import tensors_of, values_of
from kernels.packed_rows import PackedRow

SHAPES = ((2, 64), (1, 32))
CPU = torch.device("cpu")


def num_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def touch(pool: KVCachePool, first: int, last: int) -> None:
    for layer in pool.layers:
        for cache in layer:
            values_of(cache)[first:last] = 1


@pytest.mark.parametrize("scales", [None, (1, 1)], ids=["numbers", "int8"])
def test_blocks_made_ready_are_written_without_page_faults(scales, monkeypatch):
    monkeypatch.setattr(kv_cache_pool, "_AHEAD", 1 << 19)
    monkeypatch.setattr(kv_cache_pool, "_PAGE", mmap.PAGESIZE)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", mmap.MADV_NOHUGEPAGE)  # so that faults are many
    pool = KVCachePool(CacheLayout(SHAPES, 3, 16, torch.bfloat16, scales), 200, CPU)
    touch(pool, 0, 16)
    calls = 0
    while pool.prepare(16):
        calls += 1
        assert calls < 1000, "it never ends"
    before = num_faults()
    touch(pool, 16, 45)
    ready = num_faults() - before
    touch(pool, 45, 200)
    assert ready < 20
    assert num_faults() - before > 200
    assert all((values_of(cache) == 1).all() for layer in pool.layers for cache in layer), "what was written changed"
    assert pool.prepare(100), "more is taken now"


def test_memory_that_the_system_does_not_grant_is_no_error(monkeypatch):
    monkeypatch.setattr(kv_cache_pool, "_MADV_POPULATE_WRITE", 9999)
    pool = KVCachePool(CacheLayout(SHAPES, 2, 16, torch.float32), 64, CPU)
    assert pool.prepare(0), "there is something to try"
    while pool.prepare(0):
        pass
    touch(pool, 0, 64)
    assert all((values_of(cache) == 1).all() for layer in pool.layers for cache in layer)


def test_a_pool_is_zero_and_has_the_shape_asked_for():
    pool = KVCachePool(CacheLayout(SHAPES, 2, 16, torch.float32), 5, CPU)
    assert [[tuple(cache.shape) for cache in layer] for layer in pool.layers] == [[(5, 2, 16, 64), (5, 1, 16, 32)]] * 2
    assert all((cache == 0).all() for layer in pool.layers for cache in layer)


def test_packed_rows_take_the_bytes_that_the_layout_says_and_are_cleared():
    rows = PackedRow(64, 5), PackedRow(32, 4, 8)
    layout = CacheLayout(SHAPES, 2, 16, torch.float32, packed=rows)
    pool = KVCachePool(layout, 5, CPU)
    tensors = [tensor for layer in pool.layers for cache in layer for tensor in tensors_of(cache)]
    assert sum(tensor.nbytes for tensor in tensors) == 5 * layout.bytes_per_block
    for tensor in tensors:
        tensor.fill_(1)
    pool.clear([3])
    assert all((tensor[3] == 0).all() and (tensor[2] == 1).all() for tensor in tensors)

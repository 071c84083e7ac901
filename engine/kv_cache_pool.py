"""The KV cache's memory: for each layer of the pool and thing cached, a tensor [num_blocks, heads, block_size, values].

Which layers of the model use a layer of the pool, each with blocks of its own, is engine.cache_groups'.

On a CPU its pages come when they are first written, so that a large pool costs no start-up. A page's first touch is
slow, though (a virtual machine may have to ask its host: 2 ms for 2 MiB were seen), so idle moments are used to touch
those of the blocks that will be taken next.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels.kv_cache import Cache, Int8Cache, PackedCache, tensors_of

if TYPE_CHECKING:
    from kernels.packed_rows import PackedRow

_PAGE = 2 << 20  # a large page, where the system grants them
_AHEAD = 1 << 30  # bytes of blocks not yet taken whose pages are there
_MADV_POPULATE_WRITE = 23  # Linux 5.14: have pages there as if written, without changing them


@dataclass(frozen=True)
class CacheLayout:
    """What the tokens of one block leave in the cache.

    Attributes:
        shapes: [heads, values] of each thing that one token leaves in one layer.
        num_layers: of the pool; a layer of each group of the model's layers uses the same.
        scales: how many scales each row of values has where the cache is int8 (kernels.kv_cache), else None.
        packed: what each row holds where the cache is of 4 bits, else None.
    """

    shapes: tuple[tuple[int, int], ...]
    num_layers: int
    block_size: int
    dtype: torch.dtype
    scales: tuple[int, ...] | None = None
    packed: tuple[PackedRow, ...] | None = None

    @property
    def entry_size(self) -> int:
        """Bytes of one token in one layer."""
        if self.packed is not None:
            rows = zip(self.shapes, self.packed, strict=True)
            return sum(heads * (row.num_bytes + 2 * row.num_scales) for (heads, _), row in rows)
        if self.scales is None:
            return sum(heads * values for heads, values in self.shapes) * self.dtype.itemsize
        return sum(heads * (values + 4 * n) for (heads, values), n in zip(self.shapes, self.scales, strict=True))

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers."""
        return self.entry_size * self.num_layers * self.block_size


class KVCachePool:
    """The tensors of all its layers."""

    def __init__(self, layout: CacheLayout, num_blocks: int, device: torch.device) -> None:
        self.block_size, self.entry_size, self.device = layout.block_size, layout.entry_size, device
        self._num_blocks = num_blocks
        self._num_ready = 0  # blocks whose pages are there, but for those of
        self._pending: list[tuple[mmap.mmap, int, int]] = []  # (map, first byte, size)
        self._maps: list[mmap.mmap] = []

        def zeros(heads: int, values: int, dtype: torch.dtype) -> torch.Tensor:
            return self._zeros((num_blocks, heads, layout.block_size, values), dtype)

        def entry(index: int) -> Cache:
            heads, values = layout.shapes[index]
            if layout.packed is not None:
                row = layout.packed[index]
                scales = zeros(heads, row.num_scales, torch.bfloat16)
                return PackedCache(zeros(heads, row.num_bytes, torch.uint8), scales, row)
            if layout.scales is None:
                return zeros(heads, values, layout.dtype)
            return Int8Cache(zeros(heads, values, torch.int8), zeros(heads, layout.scales[index], torch.float32))

        things = range(len(layout.shapes))
        self.layers: list[tuple[Cache, ...]] = [tuple(map(entry, things)) for _ in range(layout.num_layers)]
        total = sum(map(len, self._maps))
        self._blocks_ahead = num_blocks * _AHEAD // max(1, total)
        self._blocks_at_once = max(1, num_blocks * _PAGE * len(self._maps) // max(1, total))  # a page of each

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._maps.append(memory)
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def prepare(self, num_taken: int) -> bool:
        """Touch a few pages of the blocks behind the first `num_taken`; False if nothing is left to do for now."""
        if not self._pending:
            first, wanted = max(self._num_ready, num_taken), min(num_taken + self._blocks_ahead, self._num_blocks)
            if first >= wanted or not self._maps:
                return False
            self._num_ready = min(first + self._blocks_at_once, self._num_blocks)
            for memory in self._maps:
                start, stop = (
                    len(memory) * block // self._num_blocks // mmap.PAGESIZE * mmap.PAGESIZE
                    for block in (first, self._num_ready)
                )
                if start < stop:
                    self._pending.append((memory, start, stop - start))
            return True
        memory, start, size = self._pending.pop()
        try:
            memory.madvise(_MADV_POPULATE_WRITE, start, size)
        except OSError:  # a system that does not know it, or with no memory left: pages come when they are written
            self._pending, self._num_ready = [], self._num_blocks
        return True

    def clear(self, block_ids: list[int]) -> None:
        """Zero blocks that may hold NaN of sequences before: a masked slot weighs nothing, but 0 * NaN is NaN."""
        for layer in self.layers:
            for cache in layer:
                for part in tensors_of(cache):
                    part[block_ids] = 0

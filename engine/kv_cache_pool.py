"""The KV cache's memory: for each layer and thing cached, a tensor [num_blocks, heads, block_size, values].

On a CPU its pages come when they are first written, so that a large pool costs no start-up. A page's first touch is
slow, though (a virtual machine may have to ask its host: 2 ms for 2 MiB were seen), so idle moments are used to touch
those of the blocks that will be taken next.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch

from kernels.kv_cache import Cache, Int8Cache

_PAGE = 2 << 20  # a large page, where the system grants them
_AHEAD = 1 << 30  # bytes of blocks not yet taken whose pages are there
_MADV_POPULATE_WRITE = 23  # Linux 5.14: have pages there as if written, without changing them


class KVCachePool:
    """All layers' tensors; with `scales` of int8, with so many scales for each row of values (kernels.kv_cache)."""

    def __init__(
        self,
        shapes: tuple[tuple[int, int], ...],
        num_layers: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: tuple[int, ...] | None = None,
    ) -> None:
        self.block_size, self.device = block_size, device
        self.entry_size = self.bytes_per_block(shapes, 1, 1, dtype, scales)  # of a token in one layer
        self._num_blocks = num_blocks
        self._num_ready = 0  # blocks whose pages are there, but for those of
        self._pending: list[tuple[mmap.mmap, int, int]] = []  # (map, first byte, size)
        self._maps: list[mmap.mmap] = []

        def numbers(heads: int, values: int, dtype: torch.dtype) -> torch.Tensor:
            return self._zeros((num_blocks, heads, block_size, values), dtype, device)

        def entry(heads: int, values: int, num_scales: int) -> Cache:
            if scales is None:
                return numbers(heads, values, dtype)
            return Int8Cache(numbers(heads, values, torch.int8), numbers(heads, num_scales, torch.float32))

        counts = scales or (0,) * len(shapes)
        self.layers: list[tuple[Cache, ...]] = [
            tuple(entry(*shape, count) for shape, count in zip(shapes, counts, strict=True)) for _ in range(num_layers)
        ]
        total = sum(map(len, self._maps))
        self._blocks_ahead = num_blocks * _AHEAD // max(1, total)
        self._blocks_at_once = max(
            1, num_blocks * _PAGE * len(self._maps) // max(1, total)
        )  # about a page of each tensor

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
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
                for part in cache if isinstance(cache, Int8Cache) else (cache,):
                    part[block_ids] = 0

    @staticmethod
    def bytes_per_block(
        shapes: tuple[tuple[int, int], ...],
        num_layers: int,
        block_size: int,
        dtype: torch.dtype,
        scales: tuple[int, ...] | None = None,
    ) -> int:
        """What one block costs over all layers."""
        if scales is None:
            row_bytes = [values * dtype.itemsize for _, values in shapes]
        else:
            row_bytes = [values + 4 * count for (_, values), count in zip(shapes, scales, strict=True)]
        return sum(shape[0] * size for shape, size in zip(shapes, row_bytes, strict=True)) * num_layers * block_size

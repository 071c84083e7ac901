"""Which earlier positions the queries of a layer see: rules only, without torch, caches or batches.

    FullAttention             every position up to the query's own
    LocalAttention            the last `window` positions, the query's own included
    BlockSparseAttention      a fixed number of blocks of positions (BigBird, Zaheer et al. 2020, made causal)

Position p lies in sparse block p // block_size. All queries of a sparse block see the same blocks, so their number,
and with it the cost of a query, does not grow with the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Every position up to the query's own."""

    def num_pairs(self, query_len: int, context_len: int) -> int:
        """Pairs of a query and a position that it sees, of the last `query_len` queries of a context."""
        return query_len * context_len - query_len * (query_len - 1) // 2

    def num_read(self, _: int, context_len: int) -> int:
        """Positions that at least one of these queries sees."""
        return context_len


@dataclass(frozen=True, slots=True)
class LocalAttention:
    """The last `window` positions up to the query's own.

    Raises:
        ValueError: the window is empty.
    """

    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window must have at least 1 position, and has {self.window}")

    def num_pairs(self, query_len: int, context_len: int) -> int:
        """Pairs of a query and a position that it sees, of the last `query_len` queries of a context."""
        start = context_len - query_len
        num_early = max(0, min(context_len, self.window) - start)  # queries that see everything before them
        early = FULL.num_pairs(num_early, start + num_early)
        return early + (query_len - num_early) * self.window

    def num_read(self, query_len: int, context_len: int) -> int:
        """Positions that at least one of these queries sees."""
        return min(context_len, query_len + self.window - 1)


@dataclass(frozen=True)
class BlockSparseAttention:
    """The first `num_global` blocks, the last `num_local` ones, and `num_random` others for each (layer, block).

    The random blocks of a query block b are those of num_global <= c <= b - num_local with the smallest hashes of
    (seed, layer, b, c); all of them, where there are no more.

    Raises:
        ValueError: a number is out of range, or queries would see nothing.
    """

    block_size: int
    num_global: int
    num_local: int
    num_random: int
    seed: int = 0
    layer: int = 0

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"a sparse block must have at least 1 position, and has {self.block_size}")
        if min(self.num_global, self.num_local, self.num_random) < 0:
            raise ValueError("the numbers of global, local and random blocks must not be negative")
        if self.max_blocks == 0:
            raise ValueError("global, local or random blocks must be at least 1, or queries would see nothing")

    @property
    def max_blocks(self) -> int:
        """The most blocks that a query sees."""
        return self.num_global + self.num_local + self.num_random

    def visible_blocks(self, block: int) -> tuple[int, ...]:
        """The blocks that the queries of a block see, ascending; the last may be their own, seen up to each query."""
        return tuple(self.table.row(block))

    def num_pairs(self, query_len: int, context_len: int) -> int:
        """Pairs of a query and a position that it sees, of the last `query_len` queries of a context."""
        size, total = self.block_size, 0
        for own, start, end in self._query_blocks(query_len, context_len):
            seen = self.table.row(own)
            total += (end - start) * (len(seen) - (seen[-1] == own)) * size
            if seen[-1] == own:
                total += FULL.num_pairs(end - start, end - own * size)
        return total

    def num_read(self, query_len: int, context_len: int) -> int:
        """Positions that at least one of these queries sees."""
        blocks = self._query_blocks(query_len, context_len)
        seen = {block for own, _, _ in blocks for block in self.table.row(own)}
        last = (context_len - 1) // self.block_size
        return len(seen) * self.block_size - (((last + 1) * self.block_size - context_len) if last in seen else 0)

    def _query_blocks(self, query_len: int, context_len: int) -> Iterator[tuple[int, int, int]]:
        """The sparse blocks of these queries, each with its first query and the one behind its last."""
        start, size = context_len - query_len, self.block_size
        for own in range(start // size, -(-context_len // size)):
            yield own, max(start, own * size), min(context_len, (own + 1) * size)

    @cached_property
    def table(self) -> VisibleBlocks:
        """The visible blocks of all query blocks that were asked for so far. Every sequence shares it."""
        return VisibleBlocks(self)


AttentionPattern = FullAttention | LocalAttention | BlockSparseAttention
FULL = FullAttention()


class VisibleBlocks:
    """The visible blocks of query blocks, a row each. A row is computed once.

    Cost: O(b) hashes for row b, then max_blocks numbers of memory.
    """

    def __init__(self, pattern: BlockSparseAttention) -> None:
        self._pattern, self._num_rows = pattern, 0
        self._blocks = np.empty((0, pattern.max_blocks), np.int32)

    def row(self, block: int) -> list[int]:
        """The visible blocks of one query block, ascending."""
        row: list[int] = self.rows(block + 1)[block].tolist()
        return row[: row.index(-1)] if row[-1] < 0 else row

    def rows(self, count: int) -> npt.NDArray[np.int32]:
        """At least the first `count` rows, [rows, max_blocks]; the end of a row that sees fewer blocks is -1."""
        if count > len(self._blocks):
            more = np.full((max(count, 2 * len(self._blocks), 64), self._pattern.max_blocks), -1, np.int32)
            more[: self._num_rows] = self._blocks[: self._num_rows]
            self._blocks = more
        for block in range(self._num_rows, count):
            visible = self._visible(block)
            self._blocks[block, : len(visible)] = visible
        self._num_rows = max(self._num_rows, count)
        return self._blocks

    def _visible(self, block: int) -> list[int]:
        end = block + 1
        global_end = min(self._pattern.num_global, end)
        first_local = max(end - self._pattern.num_local, global_end)
        chosen = self._choose(block, global_end, first_local)
        return [*range(global_end), *chosen, *range(first_local, end)]

    def _choose(self, block: int, first: int, last: int) -> list[int]:
        """The random blocks among first <= c < last."""
        pattern = self._pattern
        if last - first <= pattern.num_random:
            return list(range(first, last))
        if pattern.num_random == 0:
            return []
        key = pattern.seed * 2**48 + pattern.layer * 2**40 + block * 2**20 + first
        hashes = _mix(np.uint64(key % 2**64) + np.arange(last - first, dtype=np.uint64))
        chosen: list[int] = np.argpartition(hashes, pattern.num_random - 1)[: pattern.num_random].tolist()
        return sorted(first + i for i in chosen)


def _mix(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Splitmix64 (Steele et al. 2014): a permutation of the 64-bit numbers, so that no two keys tie."""
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

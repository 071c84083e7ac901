"""Which earlier positions the queries of a layer see: rules only, without torch, caches or batches.

    FullAttention             every position up to the query's own
    LocalAttention            the last `window` positions, the query's own included
    BlockSparseAttention      a fixed number of blocks of positions (BigBird, Zaheer et al. 2020, made causal)

Position p lies in sparse block p // block_size. All queries of a sparse block see the same blocks, so their number,
and with it the cost of a query, does not grow with the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Every position up to the query's own."""

    def num_visible(self, position: int) -> int:
        """How many positions the query at a position sees."""
        return position + 1


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

    def num_visible(self, position: int) -> int:
        """How many positions the query at a position sees."""
        return min(position + 1, self.window)


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

    def num_visible(self, position: int) -> int:
        """How many positions the query at a position sees."""
        own = position // self.block_size
        blocks = self.table.row(own)
        return len(blocks) * self.block_size - (
            self.block_size - 1 - position % self.block_size if blocks[-1] == own else 0
        )

    @cached_property
    def table(self) -> VisibleBlocks:
        """The visible blocks of all query blocks that were asked for so far. Every sequence shares it."""
        return VisibleBlocks(self)


AttentionPattern = FullAttention | LocalAttention | BlockSparseAttention
FULL = FullAttention()


class VisibleBlocks:
    """The visible blocks of query blocks 0 to `num_rows`, a row each. A row is computed once.

    Cost: O(b) hashes for row b; max_blocks + 1 numbers of memory a row.

    Attributes:
        blocks: [at least num_rows, max_blocks], int32, ascending; the end of a row is -1 where it sees fewer.
        counts: [at least num_rows], int32: how many blocks a row sees.
    """

    def __init__(self, pattern: BlockSparseAttention) -> None:
        self._pattern = pattern
        self.num_rows = 0
        self.blocks = np.empty((0, pattern.max_blocks), np.int32)
        self.counts = np.empty(0, np.int32)

    def row(self, block: int) -> list[int]:
        """The visible blocks of one query block."""
        self.grow(block + 1)
        row: list[int] = self.blocks[block, : self.counts[block]].tolist()
        return row

    def grow(self, num_rows: int) -> None:
        """Have at least so many rows."""
        if num_rows <= self.num_rows:
            return
        if num_rows > len(self.counts):
            self._reserve(max(num_rows, 2 * len(self.counts), 64))
        for block in range(self.num_rows, num_rows):
            row = self._visible(block)
            self.blocks[block, : len(row)] = row
            self.counts[block] = len(row)
        self.num_rows = num_rows

    def _reserve(self, num_rows: int) -> None:
        blocks = np.full((num_rows, self._pattern.max_blocks), -1, np.int32)
        counts = np.zeros(num_rows, np.int32)
        blocks[: self.num_rows] = self.blocks[: self.num_rows]
        counts[: self.num_rows] = self.counts[: self.num_rows]
        self.blocks, self.counts = blocks, counts

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

"""Which blocks of a sequence a group of layers must keep: rules in numbers of blocks, without sequences or a pool.

A group whose layers see everything keeps all blocks, and has no Window. Any other keeps what a query from some position
on may see: the blocks at the beginning, the recent ones, and of those between the ones that a later query has among its
random blocks. A sequence's last query is known, so the last reader of each block is, too.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CLAIMED_CHUNK = 512  # tokens of its prompt that a running sequence can always compute in a step, by its claim
_ROWS_AT_ONCE = 256  # of all layers; a row is tens of microseconds
Windows = tuple["Window | None", ...]  # by group; None keeps all


class SparsePattern(Protocol):
    """A pattern of layers that see some blocks only, here called units."""

    def visible_blocks(self, block: int) -> Iterable[int]:
        """The units that the queries of a unit see."""


class Readers:
    """Which queries see a unit, over all layers of a group.

    A row for each query unit, computed once: all sequences share them. As the rows of a long sequence together take
    longer than a step may, some are computed at a time.
    """

    def __init__(self, patterns: Sequence[SparsePattern], num_first: int) -> None:
        """Of layers with these patterns; nobody asks about the first units."""
        self._patterns, self._num_first = patterns, num_first
        self._readers: list[list[int]] = []  # of each unit, ascending

    def learn(self, last: int) -> bool:
        """Compute some rows (a few milliseconds), up to this one at most; whether it is known then."""
        known = len(self._readers)
        for query in range(known, min(last + 1, known + max(1, _ROWS_AT_ONCE // len(self._patterns)))):
            self._readers.append([])
            for seen in {seen for pattern in self._patterns for seen in pattern.visible_blocks(query)}:
                if seen >= self._num_first:
                    self._readers[seen].append(query)
        return last < len(self._readers)

    def last(self, unit: int, last: int) -> int:
        """The last query unit up to `last`, which is known, that sees a unit; -1 if there is none."""
        readers = self._readers[unit]
        number = bisect_right(readers, last)
        return readers[number - 1] if number else -1


@dataclass(frozen=True)
class Window:
    """What a group keeps of a sequence whose queries before some position are computed.

    Positions are told in units: one position for a local window, a sparse block for block-sparse attention.

    Attributes:
        block_size: slots in a block of the pool.
        num_recent: units that are recent for a query, its own included.
        unit: positions of one; where it is not 1, a multiple of block_size.
        num_first: blocks at the beginning that are kept for good.
        readers: who sees units that are not recent; None: nobody.
    """

    block_size: int
    num_recent: int
    unit: int = 1
    num_first: int = 0
    readers: Readers | None = None

    def first_recent(self, position: int) -> int:
        """The first block that is recent for queries from `position` on."""
        return max(0, position // self.unit - self.num_recent + 1) * self.unit // self.block_size

    def learn(self, last_position: int) -> bool:
        """Get on with finding out who reads what, up to a position; whether all is known."""
        return self.readers is None or self.readers.learn(last_position // self.unit)

    def last_reader(self, number: int, last_position: int) -> int:
        """The last unit, up to that of `last_position`, which is known, whose queries see a block; or -1.

        Those for which the block is recent may not be counted.
        """
        if self.readers is None:
            return -1
        return self.readers.last(number * self.block_size // self.unit, last_position // self.unit)

    def needed(self, num_blocks: int, last_position: int) -> Iterator[int]:
        """Numbers of the blocks, of the first num_blocks, that queries after these may see, ascending.

        These are all of them until it is known who reads what.
        """
        first, position = min(self.num_first, num_blocks), num_blocks * self.block_size
        recent = max(first, self.first_recent(position))
        yield from range(first)
        if self.readers is not None:
            own, knows = position // self.unit, recent == first or self.learn(last_position)
            yield from (i for i in range(first, recent) if not knows or self.last_reader(i, last_position) >= own)
        yield from range(recent, num_blocks)

    def most_held(self, num_blocks: int, max_batched_tokens: int) -> int:
        """Blocks that a sequence of num_blocks holds at once at most, while a step computes a claimed chunk of it.

        Where blocks have readers, almost all of them may be held.
        """
        if self.readers is not None:
            return num_blocks
        chunk = min(max_batched_tokens, CLAIMED_CHUNK)
        num_positions = self.num_recent * self.unit + chunk - 1  # from the first one of the window to the chunk's end
        if self.unit % self.block_size:
            num_positions += self.block_size - 1  # the window may begin at the end of a block
        return min(num_blocks, self.num_first - (-num_positions // self.block_size))


def most_held(windows: Windows, num_blocks: int, max_batched_tokens: int) -> int:
    """Blocks of all groups that a sequence of so many blocks' length holds at once at most."""
    return sum(num_blocks if window is None else window.most_held(num_blocks, max_batched_tokens) for window in windows)


def longest(windows: Windows, block_size: int, pool_size: int, max_batched_tokens: int, limit: int) -> int:
    """Tokens, `limit` at most, of the longest sequence that a pool of so many blocks can hold alone."""

    def held(num_blocks: int) -> int:
        return most_held(windows, num_blocks, max_batched_tokens)

    num_blocks = -(-limit // block_size)
    if held(num_blocks) <= pool_size:
        return limit
    fitting = bisect_right(range(num_blocks), pool_size, key=held) - 1
    return fitting * block_size

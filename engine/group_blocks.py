"""A sequence's blocks in one group of layers: which it holds, which it may still take, which are released and when.

Knows numbers and ids of blocks. The pool they come from and go back to is KVCacheManager's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.step import BlockTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.retention import Window

RELEASED = -1  # in place of the id of a block that no query sees any more


@dataclass(slots=True)
class GroupBlocks:
    """The blocks of one sequence in one group.

    Attributes:
        ids: of its blocks, in order of position, from number `first` on.
        num_held: of these, the ones that are not released.
        target: number of blocks that its prompt has, all of which are promised to it while it is computed.
        claim: blocks that it may hold at once while its prompt is computed.
        promised: free blocks that are kept for it, so that it can take as many at any time.
        recent: blocks from this number on are recent (engine.retention.Window).
        passed: blocks that are recent no more, and of which it is not known yet who sees them.
        due: the other blocks that are not recent, by the last query unit that sees them.
    """

    ids: list[int] = field(default_factory=list)
    first: int = 0
    num_held: int = 0
    target: int = 0
    claim: int = 0
    promised: int = 0
    recent: int = 0
    passed: list[int] = field(default_factory=list)
    due: dict[int, list[int]] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The number of the block that is taken next."""
        return self.first + len(self.ids)

    def table(self, num_blocks: int) -> BlockTable:
        """The block table up to this number of blocks, a copy."""
        return BlockTable(self.ids[: num_blocks - self.first], self.first)

    def held(self) -> Iterator[tuple[int, int]]:
        """Numbers and ids of the blocks that it holds, the last first."""
        return ((self.first + i, self.ids[i]) for i in reversed(range(len(self.ids))) if self.ids[i] != RELEASED)

    def begin(self, window: Window, num_blocks: int, found: dict[int, int]) -> None:
        """Begin behind a prefix of num_blocks, of which `found` has the ids of those that are needed."""
        self.first = min(found, default=num_blocks)
        self.ids = [found.get(number, RELEASED) for number in range(self.first, num_blocks)]
        self.num_held = len(found)
        self.recent = window.first_recent(num_blocks * window.block_size)
        self.passed = [number for number in found if window.num_first <= number < self.recent]

    def pass_by(self, window: Window, position: int, last_position: int) -> list[int]:
        """Release the blocks that no query from `position` to `last_position` sees; their ids.

        Cost: O(blocks that are recent no more, or released).
        """
        recent = window.first_recent(position)
        if recent == self.recent:
            return []
        own, gone = position // window.unit, list[int]()
        if self.due:
            own_before = self.recent * window.block_size // window.unit + window.num_recent - 1
            for unit in range(own_before, own):
                gone += self.due.pop(unit, ())
        self.passed += range(max(self.recent, window.num_first), recent)
        if window.learn(last_position):
            for number in self.passed:
                last = window.last_reader(number, last_position)
                (gone if last < own else self.due.setdefault(last, [])).append(number)
            self.passed = []
        self.recent = recent
        ids = [self.ids[number - self.first] for number in gone]
        for number in gone:
            self.ids[number - self.first] = RELEASED
        self.num_held -= len(gone)
        self._trim()
        return ids

    def _trim(self) -> None:
        """Drop what lies before the first block that is held, so that a window's table stays short."""
        num_released = next((i for i, block_id in enumerate(self.ids) if block_id != RELEASED), len(self.ids))
        if num_released:
            del self.ids[:num_released]
            self.first += num_released

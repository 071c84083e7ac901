"""Sequences that wait, smallest place first. `push`, `pop` and `discard` cost O(log waiting); nothing else grows."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from engine.sequence import SequenceStatus

if TYPE_CHECKING:
    from engine.sequence import Sequence


class WaitingQueue:
    """A heap in which sequences that ended while they waited are left lying until they come up, or are the majority."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, int], Sequence]] = []  # places are unique: sequences are never compared
        self._num_dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._num_dead

    def push(self, seq: Sequence) -> None:
        """Take in a sequence whose status is WAITING."""
        heapq.heappush(self._heap, (seq.place, seq))

    def first(self) -> Sequence | None:
        """The next one, which stays."""
        while self._heap and self._heap[0][1].status is SequenceStatus.FINISHED:
            heapq.heappop(self._heap)
            self._num_dead -= 1
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Sequence:
        """Take out the next one; there must be one."""
        while (seq := heapq.heappop(self._heap)[1]).status is SequenceStatus.FINISHED:
            self._num_dead -= 1
        return seq

    def discard(self) -> None:
        """Say that one of the waiting is now FINISHED."""
        self._num_dead += 1
        if self._num_dead > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[1].status is not SequenceStatus.FINISHED]
            heapq.heapify(self._heap)
            self._num_dead = 0

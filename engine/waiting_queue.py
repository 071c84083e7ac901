"""Sequences that wait, smallest place first. `push`, `next` and `discard` cost O(log waiting); nothing else grows."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from engine.sequence import SequenceStatus

if TYPE_CHECKING:
    from engine.sequence import Sequence

MAX_PASSED = 32  # sequences that may start before one that stands before them


class WaitingQueue:
    """A heap in which sequences that ended while they waited are left lying until they come up, or are the majority."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, int], Sequence]] = []  # places are unique: sequences are never compared
        self._num_dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._num_dead

    def push(self, *seqs: Sequence) -> None:
        """Take in sequences whose status is WAITING."""
        for seq in seqs:
            heapq.heappush(self._heap, (seq.place, seq))

    def first(self, most: int) -> list[Sequence]:
        """About the next so many, left where they are: it looks at four times as many entries of the heap."""
        entries = sorted(entry for entry in self._heap[: 4 * most] if entry[1].status is not SequenceStatus.FINISHED)
        return [seq for _, seq in entries[:most]]

    def next(self, passed: list[Sequence]) -> Sequence | None:
        """Take out the next one; None if nothing waits, or if one of those passed cannot be passed once more."""
        if any(seq.num_passed >= MAX_PASSED for seq in passed):
            return None
        while self._heap:
            seq = heapq.heappop(self._heap)[1]
            if seq.status is not SequenceStatus.FINISHED:
                return seq
            self._num_dead -= 1
        return None

    def discard(self) -> None:
        """Say that one of the waiting is now FINISHED."""
        self._num_dead += 1
        if self._num_dead > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[1].status is not SequenceStatus.FINISHED]
            heapq.heapify(self._heap)
            self._num_dead = 0

"""Sequences that have not ended, by request, and when they are to end unfinished. DynamicBatcher ends them."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.sequence import Sequence


class LiveSequences:
    """Every sequence from its arrival to its end. `add` and `due` cost O(log live)."""

    def __init__(self) -> None:
        self._of_request: dict[str, dict[int, Sequence]] = {}  # request id -> index -> sequence
        self._by_id: dict[int, Sequence] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap of (when, sequence id)

    def __bool__(self) -> bool:
        return bool(self._of_request)

    def add(self, seq: Sequence) -> None:
        """Take in a sequence that has its id."""
        self._of_request.setdefault(seq.request_id, {})[seq.index] = seq
        self._by_id[seq.sequence_id] = seq
        for deadline in (seq.scheduling.deadline, seq.scheduling.start_deadline):
            if deadline is not None:
                heapq.heappush(self._deadlines, (deadline, seq.sequence_id))

    def remove(self, seq: Sequence) -> None:
        """One has ended; of its deadlines, two numbers stay until they come up."""
        del self._by_id[seq.sequence_id]
        of_request = self._of_request[seq.request_id]
        del of_request[seq.index]
        if not of_request:
            del self._of_request[seq.request_id]

    def some(self, most: int) -> Iterator[Sequence]:
        """The first so many, in order of arrival."""
        return islice(self._by_id.values(), most)

    def of(self, request_id: str, index: int | None) -> list[Sequence]:
        """A request's sequences, or the one with this index; none where it is unknown or has ended."""
        return [seq for i, seq in self._of_request.get(request_id, {}).items() if index in (None, i)]

    def due(self, now: float) -> Iterator[Sequence]:
        """Those past their deadline, or past the one for their start and still waiting for that."""
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, sequence_id = heapq.heappop(self._deadlines)
            seq = self._by_id.get(sequence_id)
            if seq is not None and (deadline == seq.scheduling.deadline or seq.first_step_time is None):
                yield seq

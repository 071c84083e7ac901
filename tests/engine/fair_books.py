"""Fair shares as a WatchedBatcher's books have them: who was served what, who goes first, and whose step it is."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence
    from engine.step import StepPlan
    from tests.engine.shadow import Record


class FairBooks:
    """What each tenant was charged and given back, what was computed for it, and what follows for a step.

    A step has two phases. In the first only sequences of underserved tenants start, in others' places if need be.
    Then, if such tenants have prompts to compute, the step is theirs (urgent).
    """

    def __init__(
        self, running: list[Record], max_batch_size: int, *, max_passed: int, look_ahead: int, burst: int
    ) -> None:
        """`running` is the watch's own list of records that have a place in the batch, in order of start."""
        self.running, self.max_batch_size = running, max_batch_size
        self.max_passed, self.look_ahead, self.burst = max_passed, look_ahead, burst
        self.is_first_phase = False
        self.urgent: set[bytes] = set()
        self._now = 0.0
        self._ends: Counter[bytes] = Counter()
        self._served: Counter[bytes] = Counter()  # tokens over weight
        self._live: set[Sequence] = set()
        self._charges: dict[Sequence, int] = {}  # tokens of its prompt that each was charged for
        self._floor = 0.0  # what the last one that ran had been served
        self._passed: list[Record] = []  # looked at in the first phase, and left waiting

    @property
    def is_shared(self) -> bool:
        """Whether several tenants have come, and steps are paced; never under other policies, which charge nobody."""
        return len(self._ends) > 1

    # A sequence's life.

    def arrive(self, seq: Sequence, num_to_compute: int) -> float:
        """Charge its tenant; its place."""
        tenant = seq.terms.tenant
        begin = max(self._now, self._ends[tenant])
        self._charges[seq] = num_to_compute
        self._live.add(seq)
        self._ends[tenant] = begin + (num_to_compute + seq.sampling.max_tokens) / seq.terms.weight
        return begin

    def start(self, record: Record, *, in_turn: bool) -> None:
        """It is about to join those that run."""
        if all(other.tenant != record.tenant for other in self.running):  # who was away has missed its turn
            self._served[record.tenant] = max(self._served[record.tenant], self._least_served())
        if in_turn:
            self._now = max(self._now, record.place[0])

    def serve(self, record: Record, num_tokens: int) -> None:
        if self.is_shared:
            self._served[record.tenant] += num_tokens / record.weight

    def stop(self, record: Record) -> None:
        """It has left those that run; if it was the last of all, the next one starts level with it."""
        self._floor = self._served[record.tenant]

    def end(self, record: Record) -> None:
        if record.tenant in self._ends:
            unused = record.seq.sampling.max_tokens - len(record.output)
            if record.seq.first_step_time is None:
                unused += self._charges[record.seq]
            self._ends[record.tenant] -= unused / record.weight
        self._live.discard(record.seq)
        if not self._live:  # a new busy period
            self._now = self._floor = 0.0
            self._ends.clear()
            self._served.clear()

    def is_underserved(self, record: Record) -> bool:
        """At most half of its share of the places, and not far ahead in tokens; a place that it asks for counts."""
        weights = {other.tenant: other.weight for other in self.running} | {record.tenant: record.weight}
        if len(weights) == 1 or self._served[record.tenant] > self._least_served() + self.burst:
            return False
        num_places = sum(other.tenant == record.tenant for other in self.running) + (record not in self.running)
        return num_places <= self.max_batch_size * record.weight / sum(weights.values()) / 2

    def _least_served(self) -> float:
        return min((self._served[record.tenant] for record in self.running), default=self._floor)

    # A step.

    def begin_step(self) -> None:
        self.is_first_phase, self.urgent, self._passed = self.is_shared, set(), []

    def check_start(self, record: Record, passed: list[Record], tried: list[Sequence]) -> None:
        """Of a sequence that starts before all others; `passed` stand before it, `tried` may be any that were."""
        assert self.is_underserved(record), "not underserved, and starts before others"
        self._look_at(passed, tried)
        assert record not in self._passed
        assert self._num_new() < self.look_ahead, "more were looked at than may be"

    def check_gives_way(self, record: Record) -> None:
        assert self.is_first_phase
        places: Counter[bytes] = Counter()
        for other in self.running:
            places[other.tenant] += 1 / other.weight
        assert places[record.tenant] > max(places.values()) - 1e-9, "not the busiest gave way"
        newest = next(other for other in reversed(self.running) if other.tenant == record.tenant)
        assert record is newest, "not the newest gave way"

    def end_first_phase(self, waiting: list[Record], tried: list[Sequence]) -> None:
        assert self.is_first_phase
        assert len(self.running) <= self.max_batch_size
        self._look_at(waiting, tried)
        self.is_first_phase = False
        self.urgent = {r.tenant for r in self.running if r.num_uncomputed > 1 and self.is_underserved(r)}

    def _look_at(self, waiting: list[Record], tried: list[Sequence]) -> None:
        """Whoever of them was passed was not underserved at that moment, or could not start."""
        for record in waiting:
            if self._num_new() == self.look_ahead or any(r.num_passed >= self.max_passed for r in self._passed):
                break
            if record not in self._passed:
                assert record.seq in tried or not self.is_underserved(record), "underserved, and passed"
                self._passed.append(record)

    def _num_new(self) -> int:
        """Of those looked at: who was sent back does not count."""
        return sum(record.seq.first_step_time is None for record in self._passed)

    def left_out(self) -> list[Record]:
        """Those that run and are not computed in an urgent step."""
        return [record for record in self.running if self.urgent and record.tenant not in self.urgent]

    def check_lead(self, plan: StepPlan, budget: int) -> None:
        """Who has a step of its own gets at most BURST and one step's tokens ahead of the others that run."""
        least = min((self._served[record.tenant] for record in self.left_out()), default=math.inf)
        served = Counter(self._served)
        step = budget / min((item.seq.terms.weight for item in plan.scheduled), default=1.0)
        for item in plan.scheduled:
            terms = item.seq.terms
            served[terms.tenant] += item.num_tokens / terms.weight
            assert served[terms.tenant] <= least + self.burst + step + 1e-9, "ahead by too much"

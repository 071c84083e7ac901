"""The policy `fair`: tokens and seats in the batch shared among tenants (API keys), evenly or by weight.

Knows who waits, runs and was served; DynamicBatcher asks it (engine.policies.Policy). What each rule earns is measured
by `python -m benchmarks.fair_share`: the TTFT at p95 of a tenant that sends a request a second of 64, 128, 256 or 512
tokens beside one that floods, over what it has alone. With all rules that is 1.58, 1.42, 1.19 and 1.16.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from engine.sequence import SequenceStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from engine.chunk_budget import ChunkBudget
    from engine.sequence import Sequence

NUM_ASKED = 8  # waiting sequences that a step asks about, beside those that were preempted
BURST = 4096  # tokens (at weight 1) that a tenant may be ahead of another and still go first
PACE = 0.04  # seconds that a step should last at most
PACE_SHARE = 0.5  # of the decodes' time, for prompts, even if PACE is then missed
_MANY = 1024  # tenants at which the books are searched for some to forget


class FairShare:
    """Start-time fair queueing (Goyal et al. 1996), a quota of seats, and a counter of served tokens.

    A tenant's next sequence starts where its last one ends on a clock of served tokens, or now if that is past. So a
    tenant that asks for much queues behind itself, and one that asks for little is served soon. By this order alone,
    without the rules below, the ratios are 9.9, 6.5, 3.6 and 2.7.
    """

    def __init__(self, max_batch_size: int, budget: ChunkBudget) -> None:
        self._max_batch_size, self._budget = max_batch_size, budget
        self._now = 0.0  # the place of the sequence that started last in turn
        self._ends: dict[bytes, float] = {}  # tenant -> where its last sequence ends; only those ahead matter
        self._running: Counter[bytes] = Counter()  # tenant -> its seats in the batch
        self._weights: dict[bytes, float] = {}  # of tenants that have a seat
        self._served: dict[bytes, float] = {}  # tenant -> tokens computed over its weight; the absent miss theirs
        self._num_live = 0  # sequences that wait or run
        self._many = _MANY  # twice as many as were left the last time
        self._floor = 0.0  # what the last tenant that ran had been served

    @property
    def num_first(self) -> int:
        return NUM_ASKED if self._is_shared else 0

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:  # noqa: ARG002
        """A sequence is charged for its prompt and for all that it may generate."""
        self._num_live += 1
        if len(self._ends) >= self._many:  # tenants come and go
            self._forget()
        tenant = seq.scheduling.tenant
        place = max(self._now, self._ends.get(tenant, 0.0))
        self._ends[tenant] = place + (num_to_compute + seq.sampling.max_tokens) / seq.scheduling.weight
        return place

    def goes_first(self, seq: Sequence) -> bool:
        """Whether its tenant has at most half of its share of the seats, and is at most BURST ahead in tokens.

        Where nobody goes first, the ratios are 12.2, 8.6, 5.5 and 6.5. Without the bound (a counter as in Sheng et al.
        2024, "Fairness in Serving Large Language Models"), a tenant that always has a prompt of 4,000 tokens goes first
        for ever: it gets 800,200 tokens while others' streams get 29,696; with it 48,012.
        """
        tenant, weight = seq.scheduling.tenant, seq.scheduling.weight
        others = sum(self._weights[other] for other in self._weights if other != tenant)
        if not others or self._served.get(tenant, 0.0) > self._least_served() + BURST:
            return False
        num_seats = self._running[tenant] + (seq.status is SequenceStatus.WAITING)  # with the one that it asks for
        return num_seats <= self._max_batch_size * weight / (others + weight) / 2

    def gives_way(self, running: Collection[Sequence]) -> Sequence:
        """The newest of the tenant that has most for its weight.

        It loses little, since the prefix cache keeps its blocks. Where nobody gives way, and nobody starts before its
        turn, the ratios are 10.9, 6.9, 13.9 and 4.4.
        """
        busiest = max(self._running, key=lambda tenant: self._running[tenant] / self._weights[tenant])
        return next(seq for seq in reversed(list(running)) if seq.scheduling.tenant == busiest)

    def urgent(self, running: Collection[Sequence]) -> list[Sequence]:
        """All sequences of tenants that go first and have a prompt to compute.

        Without such steps the ratios are 13.5, 9.0, 7.3 and 5.3: a prompt shares each step with the flood's.
        """
        if not self._is_shared:
            return []
        tenants = {seq.scheduling.tenant for seq in running if seq.num_uncomputed_tokens > 1 and self.goes_first(seq)}
        return [seq for seq in running if seq.scheduling.tenant in tenants]

    def max_tokens(self, num_decodes: int, num_prompts: int) -> int:
        """As few as last PACE, since nobody starts before the step under way has ended.

        Without the pace the ratios are 2.64, 1.78, 1.21 and 1.24, and the greedy tenant gets 120,030 tokens. It costs
        10% of the throughput (360 against 397 output tokens/s).
        """
        num_tokens = self._budget.tokens(num_decodes, num_prompts)
        return min(num_tokens, self._budget.within(PACE, PACE_SHARE, num_decodes)) if self._is_shared else num_tokens

    def started(self, seq: Sequence, *, in_turn: bool) -> None:
        """Move the clock on, which is where the last one in turn stood."""
        tenant = seq.scheduling.tenant
        if tenant not in self._running:
            self._served[tenant] = max(self._served.get(tenant, 0.0), self._least_served())
        self._running[tenant] += 1
        self._weights[tenant] = seq.scheduling.weight
        if in_turn:
            self._now = max(self._now, seq.place[0])

    def computed(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        for seq, num_tokens in shares if self._is_shared else ():
            self._served[seq.scheduling.tenant] += num_tokens / seq.scheduling.weight

    def stopped(self, seq: Sequence) -> None:
        tenant = seq.scheduling.tenant
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant], self._weights[tenant]
            self._floor = self._served[tenant]

    def ended(self, seq: Sequence) -> None:
        """Give a tenant back what its sequence did not generate, and its prompt too if it never started."""
        if seq.scheduling.tenant in self._ends:
            unused = seq.sampling.max_tokens - seq.num_output_tokens
            if seq.first_step_time is None:
                unused += seq.num_charged
            self._ends[seq.scheduling.tenant] -= unused / seq.scheduling.weight
        self._num_live -= 1
        if not self._num_live:  # nobody has missed anything: all begin anew
            self._now = self._floor = 0.0
            self._ends.clear()
            self._served.clear()

    @property
    def _is_shared(self) -> bool:
        """Whether several tenants have come since the server was idle."""
        return len(self._ends) > 1

    def _least_served(self) -> float:
        return min((self._served[tenant] for tenant in self._running), default=self._floor)

    def _forget(self) -> None:
        """Drop what no tenant would miss: it comes back as one that is new."""
        least = self._least_served()
        self._ends = {tenant: end for tenant, end in self._ends.items() if end > self._now}
        self._served = {t: tokens for t, tokens in self._served.items() if tokens > least or t in self._running}
        self._many = max(_MANY, 2 * len(self._ends))

"""Who goes next, chosen by --policy: an order of those that wait is one function; fair shares also keep account.

A place is fixed when a sequence arrives, smallest first, so that waiting costs nothing; the number of its arrival
breaks ties and is added by the batcher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence

AGING = 16  # tokens of length that one arrival outweighs
_MANY = 1024
BURST = 4096  # tokens (at weight 1) that a key may be ahead of another and still go first

Order = Callable[["Sequence", int, int], float]  # (sequence, tokens to compute, arrival number) -> place


def length(_: Sequence, num_to_compute: int, arrival: int) -> float:
    """Shortest first, and ageing: a prompt of L tokens is passed by at most L / AGING later arrivals."""
    return num_to_compute + AGING * arrival


def fcfs(_: Sequence, __: int, arrival: int) -> float:
    """First come, first served."""
    return arrival


def priority(seq: Sequence, _: int, __: int) -> float:
    """The request's `priority`, smallest first (as in vLLM); equals in order of arrival. Large numbers may starve."""
    return seq.terms.priority


class Policy:
    """An order of arrival, start and end; this one treats all tenants alike."""

    def __init__(self, order: Order) -> None:
        self._order = order

    @property
    def paces_steps(self) -> bool:
        """Whether steps should stay short, as nobody's turn comes before the step under way has ended."""
        return False

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:
        """Where a sequence that arrives stands among the waiting, smallest first."""
        return self._order(seq, num_to_compute, arrival)

    def started(self, seq: Sequence, *, in_turn: bool) -> None:
        """A sequence has got a place in the batch; in turn, if none that stands before it still waits."""

    def served(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        """So many tokens of these sequences are being computed; the batcher says so while it paces steps."""

    def stopped(self, seq: Sequence) -> None:
        """One has lost its place again, to wait or because it ended."""

    def ended(self, seq: Sequence) -> None:
        """A sequence has ended, wherever it stood."""

    def is_underserved(self, seq: Sequence, max_batch_size: int) -> bool:  # noqa: ARG002
        """Whether a sequence's tenant has so few places in the batch that it goes before all others."""
        return False

    def gives_way(self, running: list[Sequence]) -> Sequence:
        """Who leaves a full batch for an underserved tenant: the newest, as where blocks run out."""
        return running[-1]


class FairShare(Policy):
    """Tokens shared evenly, or by weight, among API keys: start-time fair queueing (Goyal et al. 1996).

    A key's next sequence starts where its last one ends on the clock of served tokens, or now if that is past. So a key
    that asks for much queues behind itself; one that asks for little is served at once, and none can starve another.

    Places in the batch are shared likewise: a key with less than half of its share goes before all others, and takes a
    place from the key that has most; unless it has had BURST tokens more than another key that runs (a counter as in
    Sheng et al. 2024, "Fairness in Serving Large Language Models").
    """

    def __init__(self) -> None:
        self._now = 0.0  # the place of the sequence that started last in turn
        self._ends: dict[bytes, float] = {}  # key -> where its last sequence ends; only those that lie ahead matter
        self._running: Counter[bytes] = Counter()  # key -> its places in the batch
        self._weights: dict[bytes, float] = {}  # of keys that have a place
        self._served: dict[bytes, float] = {}  # key -> tokens computed over its weight; the absent miss their turn
        self._num_live = 0  # sequences that wait or run
        self._many = _MANY  # keys at which to look for some to forget: twice as many as were left the last time
        self._floor = 0.0  # what the last key that ran had been served

    @property
    def paces_steps(self) -> bool:
        """Once several keys have come since the server was idle."""
        return len(self._ends) > 1

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:  # noqa: ARG002
        """A sequence is charged for its prompt and for all that it may generate."""
        self._num_live += 1
        if len(self._ends) >= self._many:  # keys come and go
            self._forget()
        key = seq.terms.tenant
        place = max(self._now, self._ends.get(key, 0.0))
        self._ends[key] = place + (num_to_compute + seq.sampling.max_tokens) / seq.terms.weight
        return place

    def started(self, seq: Sequence, *, in_turn: bool) -> None:
        """Move the clock on, which is where the last one in turn stood."""
        key, place = seq.terms.tenant, seq.place[0]
        if key not in self._running:
            self._served[key] = max(self._served.get(key, 0.0), self._least_served())
        self._running[key] += 1
        self._weights[key] = seq.terms.weight
        if in_turn:
            self._now = max(self._now, place)

    def _forget(self) -> None:
        """Drop what no key would miss: it comes back as one that is new."""
        least = self._least_served()
        self._ends = {key: end for key, end in self._ends.items() if end > self._now}
        self._served = {k: tokens for k, tokens in self._served.items() if tokens > least or k in self._running}
        self._many = max(_MANY, 2 * len(self._ends))

    def served(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        for seq, num_tokens in shares:
            self._served[seq.terms.tenant] += num_tokens / seq.terms.weight

    def stopped(self, seq: Sequence) -> None:
        key = seq.terms.tenant
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key], self._weights[key]
            self._floor = self._served[key]

    def ended(self, seq: Sequence) -> None:
        """Give a key back what its sequence did not generate, and its prompt too if it never started."""
        if seq.terms.tenant in self._ends:
            unused = seq.sampling.max_tokens - seq.num_output_tokens
            if seq.first_step_time is None:
                unused += seq.num_charged
            self._ends[seq.terms.tenant] -= unused / seq.terms.weight
        self._num_live -= 1
        if not self._num_live:  # nobody has missed anything: all begin anew
            self._now = self._floor = 0.0
            self._ends.clear()
            self._served.clear()

    def is_underserved(self, seq: Sequence, max_batch_size: int) -> bool:
        key, weight = seq.terms.tenant, seq.terms.weight
        others = sum(self._weights[other] for other in self._weights if other != key)
        if not others or self._served.get(key, 0.0) > self._least_served() + BURST:
            return False
        num_places = self._running[key] + (not seq.block_table)  # with the one that a waiting sequence asks for
        return num_places <= max_batch_size * weight / (others + weight) / 2

    def _least_served(self) -> float:
        return min((self._served[key] for key in self._running), default=self._floor)

    def gives_way(self, running: list[Sequence]) -> Sequence:
        """The newest of the key that has most for its weight; it loses little: the prefix cache keeps what it had."""
        busiest = max(self._running, key=lambda key: self._running[key] / self._weights[key])
        return next(seq for seq in reversed(running) if seq.terms.tenant == busiest)


POLICIES: dict[str, Callable[[], Policy]] = {
    "length": lambda: Policy(length),
    "fcfs": lambda: Policy(fcfs),
    "priority": lambda: Policy(priority),
    "fair": FairShare,
}

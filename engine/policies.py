"""Which waiting sequence starts next: one function a policy, chosen by --policy.

A place is fixed when a sequence arrives, smallest first, so that waiting costs nothing; the number of its arrival
breaks ties and is added by the batcher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence

AGING = 16  # tokens of length that one arrival outweighs

Policy = Callable[["Sequence", int, int], float]  # (sequence, tokens to compute, arrival number) -> place


def length(_: Sequence, num_to_compute: int, arrival: int) -> float:
    """Shortest first, and ageing: a prompt of L tokens is passed by at most L / AGING later arrivals."""
    return num_to_compute + AGING * arrival


def fcfs(_: Sequence, __: int, arrival: int) -> float:
    """First come, first served."""
    return arrival


def priority(seq: Sequence, _: int, __: int) -> float:
    """The request's `priority`, smallest first (as in vLLM); equals in order of arrival. Large numbers may starve."""
    return seq.priority


class FairShare:
    """Tokens shared evenly, or by weight, among API keys: start-time fair queueing (Goyal et al. 1996).

    A key's next sequence starts where its last one ends on the clock of served tokens, or now if that is past. So a key
    that asks for much queues behind itself; one that asks for little is served at once, and none can starve another.
    """

    def __init__(self) -> None:
        self._now = 0.0  # the place of the sequence that started last
        self._ends: dict[bytes, float] = {}  # key -> where its last sequence ends; only those that lie ahead matter

    def __call__(self, seq: Sequence, num_to_compute: int, _: int) -> float:
        """The place of a sequence that arrives: it is charged for its prompt and all that it may generate."""
        place = max(self._now, self._ends.get(seq.tenant, 0.0))
        self._ends[seq.tenant] = place + (num_to_compute + seq.sampling.max_tokens) / seq.weight
        return place

    def started(self, place: float) -> None:
        """Move the clock on."""
        if place > self._now:
            self._now = place
            if len(self._ends) > 1024:  # keys come and go: those that are behind the clock are as good as new
                self._ends = {key: end for key, end in self._ends.items() if end > place}

    def ended(self, seq: Sequence) -> None:
        """Give a key back what its sequence did not generate."""
        if seq.tenant in self._ends:
            self._ends[seq.tenant] -= (seq.sampling.max_tokens - seq.num_output_tokens) / seq.weight


POLICIES: dict[str, Callable[[], Policy]] = {
    "length": lambda: length,
    "fcfs": lambda: fcfs,
    "priority": lambda: priority,
    "fair": FairShare,
}

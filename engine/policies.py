"""Who goes next, chosen by --policy: what DynamicBatcher asks, and the answers of the policies that are a mere order.

A place is fixed when a sequence arrives, smallest first, so that waiting costs nothing; the batcher adds the number of
the arrival, which breaks ties. Fair shares, which also keep account, are in engine.fair_share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from engine.fair_share import FairShare

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from engine.chunk_budget import ChunkBudget
    from engine.sequence import Sequence

AGING = 16  # tokens of length that one arrival outweighs


class Policy(Protocol):
    """What the batcher asks of a policy, and what it tells it.

    Attributes:
        num_first: waiting sequences of which a step begins by asking `goes_first`, at most.
    """

    @property
    def num_first(self) -> int: ...

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:
        """Where a sequence that arrives stands among the waiting, smallest first."""

    def goes_first(self, seq: Sequence) -> bool:
        """Whether a waiting sequence starts before all others, in another's place if the batch is full."""

    def gives_way(self, running: Collection[Sequence]) -> Sequence:
        """Who leaves the batch for one that goes first; `running` are in order of start."""

    def urgent(self, running: Collection[Sequence]) -> list[Sequence]:
        """Those that have the next step to themselves; empty if all may run."""

    def max_tokens(self, num_decodes: int, num_prompts: int) -> int:
        """Tokens of a step at most, if it computes so many prompts beside its decodes and is not urgent."""

    def started(self, seq: Sequence, *, in_turn: bool) -> None:
        """A sequence has got a place in the batch; in turn, if none that stands before it still waits."""

    def computed(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        """A step has computed so many tokens of each of these sequences."""

    def stopped(self, seq: Sequence) -> None:
        """A sequence has lost its place in the batch, to wait or because it ended."""

    def ended(self, seq: Sequence) -> None:
        """A sequence has ended, wherever it stood."""


class Order:
    """An order of those that wait, (sequence, tokens to compute, arrival number) -> place; nothing else."""

    num_first = 0

    def __init__(self, order: Callable[[Sequence, int, int], float], budget: ChunkBudget) -> None:
        self.place, self.max_tokens = order, budget.tokens

    def goes_first(self, _: Sequence) -> bool:
        return False

    def gives_way(self, _: Collection[Sequence]) -> Sequence:
        raise AssertionError("nobody goes first")

    def urgent(self, _: Collection[Sequence]) -> list[Sequence]:
        return []

    def started(self, seq: Sequence, *, in_turn: bool) -> None:
        pass

    def computed(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        pass

    def stopped(self, seq: Sequence) -> None:
        pass

    def ended(self, seq: Sequence) -> None:
        pass


def length(_: Sequence, num_to_compute: int, arrival: int) -> float:
    """Shortest first, and ageing: a prompt of L tokens is passed by at most L / AGING later arrivals."""
    return num_to_compute + AGING * arrival


def fcfs(_: Sequence, __: int, arrival: int) -> float:
    """First come, first served."""
    return arrival


def priority(seq: Sequence, _: int, __: int) -> float:
    """The request's `priority`, smallest first (as in vLLM); equals in order of arrival. Large numbers may starve."""
    return seq.terms.priority


POLICIES: dict[str, Callable[[int, ChunkBudget], Policy]] = {  # name -> what makes it, for a max_batch_size
    "length": lambda _, budget: Order(length, budget),
    "fcfs": lambda _, budget: Order(fcfs, budget),
    "priority": lambda _, budget: Order(priority, budget),
    "fair": FairShare,
}

"""Who goes next, chosen by --policy: what DynamicBatcher asks, and the policies that are an order and nothing else.

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
    """What the batcher asks of a policy, and what it tells it. Here nobody goes first, and no account is kept."""

    _budget: ChunkBudget

    def __init__(self, max_batch_size: int, budget: ChunkBudget) -> None:  # noqa: ARG002
        self._budget = budget

    @property
    def num_first(self) -> int:
        """How many waiting sequences a step asks `goes_first` about, at most."""
        return 0

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:
        """Where a sequence that arrives stands among the waiting, smallest first."""

    def goes_first(self, _: Sequence) -> bool:
        """Whether a waiting sequence starts before all others, in another's seat if the batch is full."""
        return False

    def gives_way(self, _: Collection[Sequence]) -> Sequence:
        """Who leaves the batch for one that goes first, of those that run, in order of start."""
        raise AssertionError("nobody goes first")

    def urgent(self, _: Collection[Sequence]) -> list[Sequence]:
        """Those that run and have the next step to themselves; empty if all may run."""
        return []

    def max_tokens(self, num_decodes: int, num_prompts: int) -> int:
        """Tokens of a step at most, if it computes so many prompts beside its decodes and is not urgent."""
        return self._budget.tokens(num_decodes, num_prompts)

    def started(self, seq: Sequence, *, in_turn: bool) -> None:
        """A sequence has got a seat in the batch; in turn, if none that stands before it still waits."""

    def computed(self, shares: Iterable[tuple[Sequence, int]]) -> None:
        """A step has computed so many tokens of each of these sequences."""

    def stopped(self, seq: Sequence) -> None:
        """A sequence has lost its seat in the batch, to wait or because it ended."""

    def ended(self, seq: Sequence) -> None:
        """A sequence has ended, wherever it stood."""


class Length(Policy):
    """Shortest first, and ageing: a prompt of L tokens is passed by at most L / AGING later arrivals."""

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:  # noqa: ARG002
        return num_to_compute + AGING * arrival


class FirstCome(Policy):
    """First come, first served."""

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:  # noqa: ARG002
        return arrival


class Priority(Policy):
    """The request's `priority`, smallest first (as in vLLM); equals in order of arrival. Large numbers may starve."""

    def place(self, seq: Sequence, num_to_compute: int, arrival: int) -> float:  # noqa: ARG002
        return seq.scheduling.priority


POLICIES: dict[str, Callable[[int, ChunkBudget], Policy]] = {  # name -> what makes it, for a max_batch_size
    "length": Length,
    "fcfs": FirstCome,
    "priority": Priority,
    "fair": FairShare,
}

"""The books of a WatchedBatcher: sequences, fair shares, and which tokens lie in which slot of which block."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence


@dataclass(eq=False)
class Record:
    """What the watch knows of one sequence; contexts has one entry for each of its tokens."""

    seq: Sequence
    number: int
    prompt: list[int]
    deadline: float
    start_deadline: float
    contexts: list[int] = field(default_factory=list)
    place: tuple[float, int] = (0, 0)
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_at_start: int = 0  # tokens that it had when it last started
    num_cached: int = 0  # of those, how many came from the cache
    num_cached_first: int = 0  # the same, when it started for the first time
    num_passed: int = 0
    first_start: float | None = None
    num_outputs: int = 0
    ended: str | None = None

    @property
    def tenant(self) -> bytes:
        return self.seq.terms.tenant

    @property
    def weight(self) -> float:
        return self.seq.terms.weight

    @property
    def num_uncomputed(self) -> int:
        return len(self.contexts) - self.num_computed


class FairBooks:
    """Fair shares from the books: what each tenant was charged and given back, and what was computed for it.

    `running` are the records that have a place in the batch.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: Counter[bytes] = Counter()
        self.served: Counter[bytes] = Counter()  # tokens over weight
        self._floor = 0.0

    @property
    def is_shared(self) -> bool:
        """Whether several tenants have come."""
        return len(self.ends) > 1

    def arrive(self, seq: Sequence, num_to_compute: int) -> float:
        begin = max(self.now, self.ends[seq.terms.tenant])
        self.ends[seq.terms.tenant] = begin + (num_to_compute + seq.sampling.max_tokens) / seq.terms.weight
        return begin

    def start(self, record: Record, running: list[Record], *, in_turn: bool) -> None:
        """It is about to join those that run."""
        tenant = record.tenant
        if all(other.tenant != tenant for other in running):  # who was away has missed its turn
            self.served[tenant] = max(self.served[tenant], self.least_served(running))
        if in_turn:
            self.now = max(self.now, record.place[0])

    def serve(self, record: Record, num_tokens: int) -> None:
        if self.is_shared:
            self.served[record.tenant] += num_tokens / record.weight

    def stop(self, record: Record) -> None:
        """It has left those that run; if it was the last of all, the next one starts level with it."""
        self._floor = self.served[record.tenant]

    def end(self, record: Record) -> None:
        seq = record.seq
        self.ends[seq.terms.tenant] -= (seq.sampling.max_tokens - len(record.output)) / seq.terms.weight

    def least_served(self, running: list[Record]) -> float:
        return min((self.served[record.tenant] for record in running), default=self._floor)

    def is_underserved(self, record: Record, running: list[Record], max_batch_size: int, burst: int) -> bool:
        """At most half of its share of the places, and not far ahead in tokens; a place that it asks for counts."""
        tenant, weight = record.tenant, record.weight
        weights = {other.tenant: other.weight for other in running} | {tenant: weight}
        if len(weights) == 1 or self.served[tenant] > self.least_served(running) + burst:
            return False
        num_places = sum(other.tenant == tenant for other in running) + (record not in running)
        return num_places <= max_batch_size * weight / sum(weights.values()) / 2


class ShadowBlocks:
    """What the pool holds. A slot's content is its context: a tenant and all tokens up to that position, as a number.

    That is all on which a key or a value depends, so equal contexts are equal contents.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.poisoned: set[int] = set()  # blocks that a broken sequence wrote
        self._slots: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self._contexts: dict[tuple[int, int | bytes], int] = {}  # (context before, token or tenant) -> context

    def extend(self, record: Record) -> None:
        """Number the contexts of a sequence's new tokens."""
        for token in (record.prompt + record.output)[len(record.contexts) :]:
            before = record.contexts[-1] if record.contexts else self._context(-1, record.tenant)
            record.contexts.append(self._context(before, token))

    def check(self, record: Record, stop: int) -> None:
        """Assert that a sequence's blocks hold its own tokens, up to position `stop`."""
        table, size = record.seq.block_table, self.block_size
        found = [self._slots[table[position // size]][position % size] for position in range(stop)]
        assert found == record.contexts[:stop], "a block holds other tokens, or another tenant's"

    def write(self, record: Record, start: int, num_tokens: int) -> set[int]:
        """Compute positions of a sequence; the blocks that were written."""
        written = set()
        for position in range(start, start + num_tokens):
            block, offset = record.seq.block_table[position // self.block_size], position % self.block_size
            if offset == 0:
                self._slots[block] = [None] * self.block_size
                self.poisoned.discard(block)
            self._slots[block][offset] = record.contexts[position]
            written.add(block)
        return written

    def _context(self, before: int, token: int | bytes) -> int:
        return self._contexts.setdefault((before, token), len(self._contexts))

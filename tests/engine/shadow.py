"""The books of a WatchedBatcher: sequences, and which tokens lie in which slot of which block."""

from __future__ import annotations

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

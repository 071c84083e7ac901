"""What the KV pool holds, by an oracle: which token, after which others and of which tenant, lies in every slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence
    from engine.step import ScheduledSequence


class ShadowBlocks:
    """A slot's content is its context: a tenant and all tokens up to that position, as a number.

    That is all on which a key or a value depends, so equal contexts are equal contents.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.poisoned: set[int] = set()  # blocks that a broken sequence wrote
        self._slots: dict[tuple[int, int], int] = {}  # (block, offset) -> context
        self._numbers: dict[tuple[int, int | bytes], int] = {}  # (context before, token or tenant) -> context

    def compute(self, seq: Sequence, item: ScheduledSequence, *, is_first: bool) -> set[int]:
        """Do what the model does: read all before the chunk, and write its own positions; the blocks written."""
        contexts, size = self.contexts(seq), self.block_size
        (block_ids,) = [table.ids for table in item.block_tables]
        found = [self._slots.get((block_ids[p // size], p % size)) for p in range(item.start)]
        assert found == contexts[: item.start], "a block holds other tokens, or another tenant's"
        if is_first:
            assert not self.poisoned & set(block_ids[: item.start // size]), "what is broken was found"
        for position in range(item.start, item.context_len):
            block, offset = block_ids[position // size], position % size
            if offset == 0:
                self.poisoned.discard(block)
            self._slots[block, offset] = contexts[position]
        return set(block_ids[item.start // size :])

    def contexts(self, seq: Sequence) -> list[int]:
        """Of each of a sequence's tokens."""
        contexts = [self._number(-1, seq.scheduling.tenant)]
        for token in seq.token_ids:
            contexts.append(self._number(contexts[-1], token))
        return contexts[1:]

    def _number(self, before: int, token: int | bytes) -> int:
        return self._numbers.setdefault((before, token), len(self._numbers))

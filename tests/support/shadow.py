"""What the KV pool holds, by an oracle: which token, after which others and of which tenant, lies in every slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence
    from engine.step import ScheduledSequence


class ShadowBlocks:
    """A slot's content is its context: a tenant, all tokens up to that position and their modalities, as a number.

    That is all on which a key or a value depends, so equal contexts are equal contents.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.poisoned: set[int] = set()  # blocks that a broken sequence wrote
        self._slots: dict[tuple[int, int], int] = {}  # (block, offset) -> context
        self._numbers: dict[tuple[int, object], int] = {}  # (context before, token and modality, or tenant) -> context

    def compute(self, seq: Sequence, item: ScheduledSequence, *, is_first: bool) -> set[int]:
        """Do what the model does: read all before the chunk, and write its own positions; the blocks written."""
        contexts, size = self.contexts(seq), self.block_size
        (block_ids,) = [table.ids for table in item.block_tables]
        found = [self._slots.get((block_ids[p // size], p % size)) for p in range(item.start)]
        assert found == contexts[: item.start], "a block holds other tokens, or another tenant's"
        read = item.modalities or bytes(item.num_tokens)
        assert [*read] == self.modalities(seq)[item.start : item.context_len], "tokens have others' modalities"
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
        for token in zip(seq.token_ids, self.modalities(seq), strict=True):
            contexts.append(self._number(contexts[-1], token))
        return contexts[1:]

    def modalities(self, seq: Sequence) -> list[int]:
        """Of each of a sequence's tokens."""
        of_prompt = [*(seq.modalities or bytes(seq.num_prompt_tokens))]
        return of_prompt + of_prompt[-1:] * seq.num_output_tokens

    def _number(self, before: int, token: object) -> int:
        return self._numbers.setdefault((before, token), len(self._numbers))

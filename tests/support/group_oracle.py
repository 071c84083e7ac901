"""What the blocks of a pool must hold where layers see different positions, found by trying out every query.

Knows the patterns of the layers and which layers share a table; of what engine.retention says it takes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from kernels.attention_pattern import AttentionPattern, BlockSparseAttention, FullAttention, LocalAttention

if TYPE_CHECKING:
    from engine.cache_groups import CacheGroups
    from engine.kv_cache_manager import KVCacheManager
    from engine.sequence import Sequence
    from engine.step import ScheduledSequence

Context = tuple[int, ...]  # what a slot's contents depend on: the group, the tokens up to its own


@cache
def visible(pattern: AttentionPattern, position: int) -> frozenset[int]:
    """The positions that a query sees."""
    match pattern:
        case FullAttention():
            return frozenset(range(position + 1))
        case LocalAttention(window):
            return frozenset(range(max(0, position - window + 1), position + 1))
        case BlockSparseAttention():
            seen = pattern.visible_blocks(position // pattern.block_size)
            return frozenset(s for s in range(position + 1) if s // pattern.block_size in seen)


class GroupOracle:
    """Follows which contents lie in which slot, for a batcher's plans."""

    def __init__(self, patterns: tuple[AttentionPattern, ...], groups: CacheGroups, block_size: int) -> None:
        self.block_size = block_size
        self.patterns = [[patterns[layer] for layer in layers] for layers in groups.groups]
        self._slots: dict[tuple[int, int], Context] = {}  # (block, offset) -> context
        self._written: dict[int, set[int]] = {}  # blocks that a sequence has written since it started
        self._broken: set[int] = set()  # blocks of sequences that ended with an error
        self._needed: dict[tuple[int, int, int], frozenset[int]] = {}

    def needed(self, group: int, start: int, last: int) -> frozenset[int]:
        """Blocks that hold a position before `start` which a query from there up to `last` sees, in any layer."""
        key = group, start, last
        if key not in self._needed:
            seen = set()
            for pattern in self.patterns[group]:
                for query in range(start, last + 1):
                    seen |= visible(pattern, query)
            self._needed[key] = frozenset(s // self.block_size for s in seen if s < start)
        return self._needed[key]

    def kept(self, group: int, start: int, last: int) -> set[int]:
        """Blocks that a sequence must hold when `start` tokens are computed: no others are to be held."""
        kept = set(self.needed(group, start, last))
        if start % self.block_size:  # what is being written
            kept.add(start // self.block_size)
        for pattern in self.patterns[group]:
            if isinstance(pattern, BlockSparseAttention) and pattern.num_local == 0:
                first = start // pattern.block_size * pattern.block_size
                kept |= {s // self.block_size for s in range(first, start)}
        return kept

    def compute(self, seq: Sequence, item: ScheduledSequence, *, is_first: bool) -> set[int]:
        """Do what the model does: write the chunk's positions, then read all that its queries see; the blocks written.

        Every read must find the contents of the sequence's own position, which nobody broken wrote.
        """
        if is_first:
            self._written[seq.sequence_id] = set()
            for table in item.block_tables:
                found = set(table.ids[: item.start // self.block_size - table.first])
                assert not found & self._broken, "what is broken was found"
        written = set[int]()
        for group, table in enumerate(item.block_tables):
            assert all(block >= -1 for block in table.ids)
            for position in range(item.start, item.context_len):
                block = table.ids[position // self.block_size - table.first]
                self._slots[block, position % self.block_size] = self._context(seq, group, position)
                written.add(block)
                if position % self.block_size == 0:
                    self._broken.discard(block)
                    for blocks in self._written.values():
                        blocks.discard(block)
            for pattern in self.patterns[group]:
                for position in {s for query in range(item.start, item.context_len) for s in visible(pattern, query)}:
                    number = position // self.block_size - table.first
                    assert number >= 0, "a block that a query sees is released"
                    found = self._slots.get((table.ids[number], position % self.block_size))
                    assert found == self._context(seq, group, position), "a block that a query sees was used again"
        self._written[seq.sequence_id] |= written
        return written

    def broke(self, seq: Sequence) -> None:
        """What a sequence wrote must not be found any more."""
        self._broken |= self._written[seq.sequence_id]

    def longest_prefix(self, seq: Sequence, manager: KVCacheManager, last: int) -> int:
        """Blocks of the longest prefix behind which all is cached that later queries see."""
        size, cached = self.block_size, manager._pool.prefix_cache.blocks.values()
        contents = {self._slots[block.block_id, size - 1] for block in cached}
        for length in range((seq.num_tokens - 1) // size, 0, -1):
            if all(
                self._context(seq, group, number * size + size - 1) in contents
                for group in range(len(self.patterns))
                for number in self.kept(group, length * size, last)
            ):
                return length
        return 0

    def _context(self, seq: Sequence, group: int, position: int) -> Context:
        return group, *seq.scheduling.tenant, *seq.token_ids[: position + 1]

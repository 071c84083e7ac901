"""Which KV block belongs to which sequence: block tables, reference counts and the free list.

Owns all of these; reads Sequences and writes none. A block that is full and computed is cached under a hash of its
tokens, of all before it and of the tenant and its salt (engine.prefix_cache): a later sequence of these that begins the
same way takes the block as it is. Nobody writes into a full block, so sharing needs no copies. A cached block that no
sequence holds counts as free.

Costs: O(blocks moved, looked up or copied into a plan); nothing here grows with the pool or with idle sequences.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.prefix_cache import Block, InFlightPrefixes, PrefixCache
from engine.step import BlockTable

if TYPE_CHECKING:
    from engine.sequence import Sequence


@dataclass(slots=True)
class _SequenceBlocks:
    """What the manager keeps of one sequence.

    Attributes:
        table: ids of its blocks, in order of position.
        copies: of the table, by group, as plans of decodes have it; None where it has changed since.
        hashes: of its full blocks, as far as they were asked for.
        in_flight: numbers of its blocks that it has yet to fill from tokens it had when it started.
    """

    table: list[int] = field(default_factory=list)
    copies: list[BlockTable] | None = None
    hashes: list[bytes] = field(default_factory=list)
    in_flight: range = range(0)


class KVCacheManager:
    """Hands out the blocks of a fixed pool.

    Every block is in one of three states: on the free list, in the prefix cache as evictable, or in the block tables of
    as many sequences as its ref_count says.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._blocks: list[Block] = []  # those that were ever taken; the rest of the pool is free
        self._free: list[Block] = []  # a stack: the block released last is still in the CPU's caches
        self._prefix_cache = PrefixCache()
        self._in_flight = {is_background: InFlightPrefixes() for is_background in (False, True)}  # by whom
        self._sequences: dict[int, _SequenceBlocks] = {}

    @property
    def num_ever_taken(self) -> int:
        """The first so many blocks have been taken; the others never."""
        return len(self._blocks)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self.num_blocks - len(self._blocks) + len(self._free) + self._prefix_cache.num_evictable

    @property
    def num_used_blocks(self) -> int:
        """Blocks that live sequences hold."""
        return self.num_blocks - self.num_free_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def block_tables(self, seq: Sequence, num_tokens: int) -> list[BlockTable]:
        """The blocks that hold a running sequence's first num_tokens, by group; copies."""
        return [BlockTable(self._sequences[seq.sequence_id].table[: -(-num_tokens // self.block_size)])]

    def find_prefix(self, seq: Sequence) -> list[Block]:
        """Cached blocks that hold the beginning of `seq`; never its last token, which must be computed."""
        blocks: list[Block] = []
        for number in range(self._num_reusable(seq)):
            block = self._prefix_cache.find(self._hash(seq, number))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def is_in_flight(self, seq: Sequence, number: int) -> bool:
        """Whether a running sequence is computing what could be the block of `seq` with this number.

        A live sequence asks only about live ones: no other is to delay it.
        """
        asked = self._in_flight.values() if seq.scheduling.background else [self._in_flight[False]]
        return number < self._num_reusable(seq) and any(self._hash(seq, number) in prefixes for prefixes in asked)

    def start(self, seq: Sequence, prefix: list[Block], num_spare: int) -> bool:
        """Give `seq`, which holds nothing, the blocks for all its tokens, beginning with what `find_prefix` found.

        False, with nothing changed, if that would leave fewer than num_spare blocks free.
        """
        num_new = self.num_blocks_for(seq.num_tokens) - len(prefix)
        num_revived = sum(block.ref_count == 0 for block in prefix)
        if num_new + num_revived + num_spare > self.num_free_blocks:
            return False
        for block in prefix:
            self._prefix_cache.hold(block)
            block.ref_count += 1
        held = self._held_by(seq)
        held.table = [block.block_id for block in prefix] + [self._take() for _ in range(num_new)]
        if self._prefix_caching:
            held.in_flight = range(len(prefix), seq.num_tokens // self.block_size)
            announced = self._in_flight[seq.scheduling.background]
            announced.add(self._hash(seq, number) for number in held.in_flight)
        return True

    def grow(self, seq: Sequence) -> list[BlockTable] | None:
        """Give `seq` the block that its last token needs, if it lacks one.

        Returns:
            copies of its block tables, by group; None if no block is free.
        """
        held = self._sequences[seq.sequence_id]
        if len(held.table) * self.block_size < len(seq.token_ids):
            if self.num_free_blocks == 0:
                return None
            held.table.append(self._take())
            held.copies = None
        if held.copies is None:
            held.copies = [BlockTable(held.table.copy())]
        return held.copies

    def cache_full_blocks(self, seq: Sequence, num_before: int) -> None:
        """Cache the blocks that a step filled; `num_before` tokens were computed before it."""
        computed, before = seq.num_computed_tokens // self.block_size, num_before // self.block_size
        if computed == before or not self._prefix_caching:
            return
        self._withdraw(seq, computed)
        table = self._held_by(seq).table
        for number in range(before, computed):
            self._prefix_cache.insert(self._blocks[table[number]], self._hash(seq, number))

    def release(self, seq: Sequence, *, forget: bool = False) -> None:
        """Take back every block of `seq`; the one way in which blocks become free.

        With `forget`, what the sequence computed is not to be trusted, and nobody finds its blocks any more.
        """
        self._withdraw(seq, seq.num_tokens)
        for block_id in reversed(
            self._held_by(seq).table
        ):  # so that the end of a prefix is evicted before its beginning
            block = self._blocks[block_id]
            if forget:
                self._prefix_cache.remove(block)
            block.ref_count -= 1
            assert block.ref_count >= 0, "a block was released twice"
            if block.ref_count > 0:
                continue
            if block.hash is None:
                self._free.append(block)
            else:
                self._prefix_cache.let_go(block)
        del self._sequences[seq.sequence_id]

    def check(self, live: list[Sequence]) -> None:
        """Assert that every block is in one state, held by exactly the sequences that have it in their tables."""
        assert self._sequences.keys() <= {seq.sequence_id for seq in live}, "a block table outlived its sequence"
        ref_counts = [0] * len(self._blocks)
        for held in self._sequences.values():
            for block_id in held.table:
                ref_counts[block_id] += 1
        assert ref_counts == [block.ref_count for block in self._blocks], "reference counts are off"
        cache, in_tables = self._prefix_cache, [i for i, count in enumerate(ref_counts) if count]
        free = [block.block_id for block in self._free]
        assert sorted([*free, *cache.evictable, *in_tables]) == list(range(len(self._blocks))), (
            "blocks leaked or doubled"
        )
        assert all(block.hash is None for block in self._free)
        assert {block.hash: block for block in self._blocks if block.hash is not None} == cache.blocks
        of_id = {seq.sequence_id: seq for seq in live}
        for is_background, prefixes in self._in_flight.items():
            theirs = [(of_id[i], held) for i, held in self._sequences.items()]
            theirs = [(seq, held) for seq, held in theirs if seq.scheduling.background == is_background]
            prefixes.check(self._hash(seq, number) for seq, held in theirs for number in held.in_flight)

    def _held_by(self, seq: Sequence) -> _SequenceBlocks:
        return self._sequences.setdefault(seq.sequence_id, _SequenceBlocks())

    def _num_reusable(self, seq: Sequence) -> int:
        """How many blocks of `seq` may come from the cache."""
        if not self._prefix_caching or seq.needs_every_position:
            return 0
        return (seq.num_tokens - 1) // self.block_size

    def _withdraw(self, seq: Sequence, stop: int) -> None:
        """A sequence's blocks below `stop` are in flight no more: they are computed, or will not be."""
        held = self._held_by(seq)
        num_done = stop - held.in_flight.start
        done, held.in_flight = held.in_flight[:num_done], held.in_flight[num_done:]
        self._in_flight[seq.scheduling.background].remove(self._hash(seq, number) for number in done)

    def _take(self) -> int:
        """A free block's id; only where none is left, a cached one is evicted."""
        if self._free:
            block = self._free.pop()
        elif len(self._blocks) < self.num_blocks:
            block = Block(len(self._blocks))
            self._blocks.append(block)
        else:
            block = self._prefix_cache.evict()
        block.ref_count = 1
        return block.block_id

    def _hash(self, seq: Sequence, number: int) -> bytes:
        """The hash of a sequence's block by its number; each depends on the one before, and is kept until `release`."""
        hashes = self._held_by(seq).hashes
        while len(hashes) <= number:
            first, stop = len(hashes) * self.block_size, (len(hashes) + 1) * self.block_size
            tokens = array("q", seq.token_ids[first:stop])
            if modalities := seq.modalities_of(first, stop):  # equal tokens of others have other keys and values
                tokens = array("q", (token | kind << 32 for token, kind in zip(tokens, modalities, strict=True)))
            hashes.append(
                hashlib.sha256((hashes[-1] if hashes else seq.scheduling.prefix_salt) + tokens.tobytes()).digest()
            )
        return hashes[number]

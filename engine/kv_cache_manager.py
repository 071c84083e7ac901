"""Which KV block belongs to which sequence: block tables, and what a sequence finds in the prefix cache.

Owns these and the BlockPool; reads Sequences and writes none. A block that is full and computed is cached under its
hash (engine.block_hashes): a later sequence that begins the same way takes the block as it is. Nobody writes into a
full block, so sharing needs no copies. A cached block that no sequence holds counts as free. Groups of layers
(engine.cache_groups) have block tables of their own; those with a Window (engine.retention) take blocks as a prompt is
computed, and release what no later query sees.

Costs: O(blocks moved, looked up or copied into a plan); nothing here grows with the pool or with idle sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.block_hashes import BlockHashes
from engine.block_pool import BlockPool
from engine.group_blocks import GroupBlocks
from engine.prefix_cache import Block, CachedPrefix, InFlightPrefixes
from engine.retention import CLAIMED_CHUNK, longest, most_held

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.retention import Windows
    from engine.sequence import Sequence
    from engine.step import BlockTable


@dataclass(slots=True)
class _SequenceBlocks:
    """What the manager keeps of one sequence.

    Attributes:
        groups: its blocks, by group.
        num_slots: tokens for which it has blocks in all groups.
        tables: block tables, by group, as plans of decodes have them; None where they have changed since.
        hashes: of its full blocks, as far as they were asked for.
        in_flight: numbers of its blocks that it has yet to fill from tokens it had when it started.
    """

    groups: list[GroupBlocks] = field(default_factory=list)
    num_slots: int = 0
    tables: list[BlockTable] | None = None
    hashes: BlockHashes = field(default_factory=BlockHashes)
    in_flight: range = range(0)


class KVCacheManager:
    """Hands out the blocks of a fixed pool.

    A sequence gets the blocks of its whole prompt when it starts, so that no step of it ever lacks one. A group with a
    window holds them by and by, and never all at once: there it gets a claim, and free blocks are promised to it.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        windows: Windows = (None,),
        max_batched_tokens: int = CLAIMED_CHUNK,
        prefix_caching: bool = True,
    ) -> None:
        """Start with all blocks free; `windows` is what each group of layers keeps."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._windows = windows
        self._with_window = [(g, window) for g, window in enumerate(windows) if window is not None]
        self._suffixes = [g.to_bytes(1) if g else b"" for g in range(len(windows))]  # of keys in the prefix cache
        self._max_batched_tokens = max_batched_tokens
        self._pool = BlockPool(num_blocks)
        self._in_flight = {is_background: InFlightPrefixes() for is_background in (False, True)}  # by whom
        self._sequences: dict[int, _SequenceBlocks] = {}

    @property
    def num_ever_taken(self) -> int:
        """The first so many blocks have been taken; the others never."""
        return self._pool.num_ever_taken

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._pool.num_free

    @property
    def num_available_blocks(self) -> int:
        """Free blocks that are promised to nobody."""
        return self._pool.num_available

    @property
    def num_used_blocks(self) -> int:
        """Blocks that live sequences hold."""
        return self.num_blocks - self.num_free_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens, in a group that keeps all."""
        return -(-num_tokens // self.block_size)

    def num_held(self, seq: Sequence) -> int:
        """Blocks that a sequence holds, shared ones included."""
        return sum(group.num_held for group in self._held_by(seq).groups)

    def can_ever_hold(self, num_tokens: int) -> bool:
        """Whether a sequence of this length fits the pool when it has it alone."""
        return most_held(self._windows, self.num_blocks_for(num_tokens), self._max_batched_tokens) <= self.num_blocks

    def longest(self, limit: int) -> int:
        """Tokens of the longest sequence that fits, `limit` at most."""
        return longest(self._windows, self.block_size, self.num_blocks, self._max_batched_tokens, limit)

    def find_prefix(self, seq: Sequence) -> CachedPrefix:
        """The longest beginning of `seq` behind which it can start; never its last token, which must be computed.

        What queries behind some prefix see, those behind a shorter one see as well, as far as it reaches. So no prefix
        that reaches beyond a missing block will do.
        """
        length, before, last = self._num_reusable(seq), -1, _last_position(seq)
        found: list[dict[int, Block]] = [{} for _ in self._windows]
        for group, window in enumerate(self._windows):
            if window is None:
                length = self._look_up(seq, group, range(length), found[group], length)
        while length != before:
            before = length
            for group, window in self._with_window:
                length = self._look_up(seq, group, window.needed(length, last), found[group], length)
        for group, window in enumerate(self._windows):
            if window is not None or len(found[group]) > length:
                needed = range(length) if window is None else window.needed(length, last)
                found[group] = {number: found[group][number] for number in needed}
        return CachedPrefix(length, found)

    def is_in_flight(self, seq: Sequence, number: int) -> bool:
        """Whether a running sequence is computing what could be the block of `seq` with this number.

        A live sequence asks only about live ones: no other is to delay it.
        """
        asked = self._in_flight.values() if seq.scheduling.background else [self._in_flight[False]]
        return number < self._num_reusable(seq) and any(self._hash(seq, number) in prefixes for prefixes in asked)

    def num_needed(self, seq: Sequence, prefix: CachedPrefix, num_growing: int) -> int:
        """Available blocks that it takes to start `seq` behind a prefix while others may grow by a block a group."""
        num_blocks, num_needed = self.num_blocks_for(seq.num_tokens), num_growing * len(self._windows)
        for window, blocks in zip(self._windows, prefix.blocks, strict=True):
            if window is None:
                num_needed += num_blocks - len(blocks) + sum(block.ref_count == 0 for block in blocks.values())
            else:  # what others hold as well they may release before, so it has to be paid
                claim = window.most_held(num_blocks, self._max_batched_tokens)
                num_needed += min(claim, len(blocks) + num_blocks - prefix.num_blocks)
        return num_needed

    def start(self, seq: Sequence, prefix: CachedPrefix, num_growing: int) -> bool:
        """Give `seq`, which holds nothing, what `find_prefix` found, and the blocks of all its tokens behind that.

        Groups with a window only get a claim to these (`extend`). False, with nothing changed, if too few blocks are
        available.
        """
        if self.num_needed(seq, prefix, num_growing) > self._pool.num_available:
            return False
        num_blocks = self.num_blocks_for(seq.num_tokens)
        held = self._held_by(seq)
        ids = [
            {number: self._pool.hold(block, in_window=window is not None) for number, block in blocks.items()}
            for window, blocks in zip(self._windows, prefix.blocks, strict=True)
        ]  # all of them before any block is taken, which may evict one
        for window, found in zip(self._windows, ids, strict=True):
            group = GroupBlocks(target=num_blocks)
            if window is None:
                group.ids = [*found.values(), *(self._pool.take() for _ in range(len(found), num_blocks))]
                group.num_held = num_blocks
            else:
                group.claim = window.most_held(num_blocks, self._max_batched_tokens)
                group.begin(window, prefix.num_blocks, found)
                self._promise(group)
            held.groups.append(group)
        held.num_slots = min(group.end for group in held.groups) * self.block_size
        if self._prefix_caching:
            held.in_flight = range(prefix.num_blocks, seq.num_tokens // self.block_size)
            announced = self._in_flight[seq.scheduling.background]
            announced.add(self._hash(seq, number) for number in held.in_flight)
        return True

    def most_tokens(self, seq: Sequence) -> int:
        """Tokens that a step can compute of a running sequence's prompt, at least 1."""
        if not self._with_window:
            return seq.num_uncomputed_tokens
        groups = [self._sequences[seq.sequence_id].groups[g] for g, _ in self._with_window]
        num_new = min(group.promised for group in groups) + self._pool.num_available // len(groups)
        return (groups[0].end + num_new) * self.block_size - seq.num_computed_tokens

    def extend(self, seq: Sequence, num_tokens: int) -> list[BlockTable]:
        """Give a running sequence the blocks that its first num_tokens lack, `most_tokens` beyond the computed at most.

        Returns:
            the blocks that hold them, by group; copies.
        """
        held, num_blocks = self._sequences[seq.sequence_id], self.num_blocks_for(num_tokens)
        if held.num_slots < num_tokens:
            self._take_up_to(held, num_blocks)
        return [group.table(num_blocks) for group in held.groups]

    def grow(self, seq: Sequence) -> list[BlockTable] | None:
        """Give `seq` the blocks that its last token needs, if it lacks some.

        Returns:
            copies of its block tables, by group; None if too few blocks are free.
        """
        held = self._sequences[seq.sequence_id]
        if held.num_slots < len(seq.token_ids):
            num_blocks, num_available = self.num_blocks_for(len(seq.token_ids)), self._pool.num_available
            if num_available < len(held.groups):  # else each group can have its one
                num_missing = sum(max(0, num_blocks - group.end - group.promised) for group in held.groups)
                if num_missing > num_available:
                    return None
            self._take_up_to(held, num_blocks)
        if held.tables is None:
            held.tables = [group.table(group.end) for group in held.groups]
        return held.tables

    def computed(self, seq: Sequence, num_before: int) -> None:
        """Take in that a step has computed tokens of `seq`; num_before were computed before.

        The blocks that it filled are cached, and those that no later query sees are released.
        """
        filled, before = seq.num_computed_tokens // self.block_size, num_before // self.block_size
        if filled > before and self._prefix_caching:
            self._withdraw(seq, filled)
            groups = self._sequences[seq.sequence_id].groups
            for number in range(before, filled):
                block_hash = self._hash(seq, number)
                for suffix, group in zip(self._suffixes, groups, strict=True):
                    self._pool.cache(group.ids[number - group.first], block_hash + suffix)
        if self._with_window:
            self._release_unseen(seq)

    def release(self, seq: Sequence, *, forget: bool = False) -> None:
        """Take back every block of `seq`.

        With `forget`, what the sequence computed is not to be trusted, and nobody finds its blocks any more.
        """
        self._withdraw(seq, seq.num_tokens)
        held = self._held_by(seq)
        if forget and self._with_window and self._prefix_caching:
            self._forget_released(seq)
        blocks = [(number, g, block_id) for g, group in enumerate(held.groups) for number, block_id in group.held()]
        if len(held.groups) > 1:
            blocks.sort(reverse=True)
        for _, g, block_id in blocks:  # the last first, so that the end of a prefix is evicted before its beginning
            if forget:
                self._pool.forget(self._pool[block_id])
            self._pool.let_go(block_id, in_window=self._windows[g] is not None)
        self._pool.num_promised -= sum(group.promised for group in held.groups)
        del self._sequences[seq.sequence_id]

    def check(self, live: list[Sequence]) -> None:
        """Assert that every block is in one state, held by exactly the sequences that have it in their tables."""
        assert self._sequences.keys() <= {seq.sequence_id for seq in live}, "a block table outlived its sequence"
        ref_counts, num_promised = [0] * self.num_ever_taken, 0
        for held in self._sequences.values():
            for window, group in zip(self._windows, held.groups, strict=bool(held.groups)):
                ids = [block_id for _, block_id in group.held()]
                assert len(ids) == group.num_held, "held blocks are miscounted"
                for block_id in ids:
                    num_promised += window is not None and ref_counts[block_id] > 0
                    ref_counts[block_id] += 1
                num_promised += group.promised
        self._pool.check(ref_counts)
        assert self._pool.num_promised == num_promised, "promises are miscounted"
        of_id = {seq.sequence_id: seq for seq in live}
        for is_background, prefixes in self._in_flight.items():
            theirs = [(of_id[i], held) for i, held in self._sequences.items()]
            theirs = [(seq, held) for seq, held in theirs if seq.scheduling.background == is_background]
            prefixes.check(self._hash(seq, number) for seq, held in theirs for number in held.in_flight)

    def _held_by(self, seq: Sequence) -> _SequenceBlocks:
        held = self._sequences.get(seq.sequence_id)
        if held is None:
            held = self._sequences[seq.sequence_id] = _SequenceBlocks()
        return held

    def _num_reusable(self, seq: Sequence) -> int:
        """How many blocks of `seq` may come from the cache."""
        if not self._prefix_caching or seq.needs_every_position:
            return 0
        return (seq.num_tokens - 1) // self.block_size

    def _look_up(self, seq: Sequence, group: int, numbers: Iterable[int], found: dict[int, Block], length: int) -> int:
        """Find cached blocks of `seq` by their numbers; the first number that is missing, `length` if none is."""
        suffix = self._suffixes[group]
        for number in numbers:
            if number not in found:
                block = self._pool.prefix_cache.find(self._hash(seq, number) + suffix)
                if block is None:
                    return number
                found[number] = block
        return length

    def _take_up_to(self, held: _SequenceBlocks, num_blocks: int) -> None:
        """Have each group of a sequence hold all blocks up to this number of them."""
        for group in held.groups:
            num_new = num_blocks - group.end
            if num_new > 0:
                group.ids += [self._pool.take() for _ in range(num_new)]
                group.num_held += num_new
                if group.claim:
                    self._promise(group)
        held.num_slots, held.tables = num_blocks * self.block_size, None

    def _promise(self, group: GroupBlocks) -> None:
        """Keep as many free blocks for a group as it may still take at once while its prompt is computed."""
        promised = max(0, min(group.claim - group.num_held, group.target - group.end))
        self._pool.num_promised += promised - group.promised
        group.promised = promised

    def _release_unseen(self, seq: Sequence) -> None:
        """Let go of the blocks that no later query of `seq` sees."""
        held = self._sequences[seq.sequence_id]
        for g, window in self._with_window:
            group = held.groups[g]
            if ids := group.pass_by(window, seq.num_computed_tokens, _last_position(seq)):
                for block_id in ids:
                    self._pool.let_go(block_id, in_window=True)
                self._promise(group)
                held.tables = None

    def _forget_released(self, seq: Sequence) -> None:
        """Let nobody find what a running sequence has computed and released already."""
        for number in range(seq.num_computed_tokens // self.block_size):
            for g, _ in self._with_window:
                block = self._pool.prefix_cache.find(self._hash(seq, number) + self._suffixes[g])
                if block is not None:
                    self._pool.forget(block)

    def _withdraw(self, seq: Sequence, stop: int) -> None:
        """A sequence's blocks below `stop` are in flight no more: they are computed, or will not be."""
        held = self._held_by(seq)
        if not held.in_flight:
            return
        num_done = stop - held.in_flight.start
        done, held.in_flight = held.in_flight[:num_done], held.in_flight[num_done:]
        self._in_flight[seq.scheduling.background].remove(self._hash(seq, number) for number in done)

    def _hash(self, seq: Sequence, number: int) -> bytes:
        return self._held_by(seq).hashes.of(seq, number, self.block_size)


def _last_position(seq: Sequence) -> int:
    """The position of the last query that a sequence can have; the last token that it samples is not computed."""
    return seq.num_prompt_tokens + max(1, seq.sampling.max_tokens) - 2

"""Which KV block belongs to whom, and which can serve again: block ids and hashes, nothing of their contents.

A block that is full and computed gets a hash of its tokens, of all before it and of whose they are, so that a later
sequence of the same tenant that begins the same way takes the block as it is (prefix caching). Nobody writes into a
full block, so sharing needs no copies. When its last holder lets go, a hashed block stays until memory is wanted:
unheld blocks are taken back oldest first, and count as free.

Costs: O(blocks moved or looked up); nothing here grows with the pool or with idle sequences.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence


class KVCacheManager:
    """Hands out the blocks of a fixed pool.

    Every block is in one of three places: on the stack of blank ones, among the cached ones that nobody holds, or in
    the block tables of as many sequences as it has holders.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_ever_taken = 0  # the first so many blocks; the others were never held
        self._prefix_caching = prefix_caching
        self._blank = list(reversed(range(num_blocks)))  # a stack: the block freed last is still in the CPU's caches
        self._unheld: OrderedDict[int, None] = OrderedDict()  # cached blocks without a holder, oldest first
        self._num_holders = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}  # hash -> block
        self._computing: dict[Sequence, range] = {}  # of those that prefill: their blocks that are not yet full
        self._announced: Counter[bytes] = Counter()  # the hashes that those blocks will have

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._blank) + len(self._unheld)

    @property
    def num_used_blocks(self) -> int:
        """Blocks that live sequences hold."""
        return self.num_blocks - self.num_free_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, seq: Sequence) -> list[int]:
        """Cached blocks that hold the beginning of `seq`; never its last token, which must be computed."""
        blocks: list[int] = []
        for number in range(self._num_reusable(seq)):
            block = self._cached.get(self._hash(seq, number))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def awaits(self, seq: Sequence, prefix: list[int]) -> bool:
        """Whether a running sequence is computing the very block that `seq` lacks next."""
        number = len(prefix)
        return number < self._num_reusable(seq) and self._hash(seq, number) in self._announced

    def start(self, seq: Sequence, prefix: list[int], num_spare: int) -> bool:
        """Give `seq`, which holds nothing, the blocks for all its tokens, beginning with what `find_prefix` found.

        False, with nothing changed, if that would leave fewer than num_spare blocks free.
        """
        num_new = self.num_blocks_for(seq.num_tokens) - len(prefix)
        num_revived = sum(self._num_holders[block] == 0 for block in prefix)
        if num_new + num_revived + num_spare > self.num_free_blocks:
            return False
        for block in prefix:
            self._unheld.pop(block, None)
            self._num_holders[block] += 1
        seq.block_table += prefix
        seq.block_table += [self._take() for _ in range(num_new)]
        if self._prefix_caching:
            self._computing[seq] = range(len(prefix), seq.num_tokens // self.block_size)
            self._announced.update(self._hash(seq, number) for number in self._computing[seq])
        return True

    def grow(self, seq: Sequence) -> bool:
        """Give `seq` the block that its last token needs, if it lacks one; False if none is free."""
        if len(seq.block_table) < self.num_blocks_for(seq.num_tokens):
            if self.num_free_blocks == 0:
                return False
            seq.block_table.append(self._take())
        return True

    def remember(self, seq: Sequence, num_before: int) -> None:
        """Make the blocks that have become full findable; `num_before` tokens were computed before the step."""
        computed, before = seq.num_computed_tokens // self.block_size, num_before // self.block_size
        if computed == before or not self._prefix_caching:
            return
        self._withdraw(seq, computed)
        for number in range(before, computed):
            block, key = seq.block_table[number], self._hash(seq, number)
            if self._hashes[block] is None and key not in self._cached:
                self._hashes[block] = key
                self._cached[key] = block

    def release(self, seq: Sequence, *, forget: bool = False) -> None:
        """Take back every block of `seq`; the one way in which blocks become free.

        With `forget`, what it computed is not to be trusted, and nobody will find its blocks any more.
        """
        self._withdraw(seq, seq.num_tokens)
        for block in reversed(seq.block_table):  # so that the end of a prefix is given up before its beginning
            if forget:
                self._forget(block)
            self._num_holders[block] -= 1
            assert self._num_holders[block] >= 0, "a block was released twice"
            if self._num_holders[block] > 0:
                continue
            if self._hashes[block] is None:
                self._blank.append(block)
            else:
                self._unheld[block] = None
        seq.block_table.clear()

    def check(self, live: list[Sequence]) -> None:
        """Assert that every block is in one place, held by exactly the sequences that have it in their tables."""
        holders = [0] * self.num_blocks
        for seq in live:
            for block in seq.block_table:
                holders[block] += 1
        assert holders == self._num_holders, "reference counts are off"
        free = [*self._blank, *self._unheld]
        held = [block for block in range(self.num_blocks) if holders[block]]
        assert sorted(free + held) == list(range(self.num_blocks)), "blocks leaked or doubled"
        assert all(self._hashes[block] is None for block in self._blank)
        assert set(self._computing) <= set(live), "an announcement outlived its sequence"
        expected = Counter(self._hash(seq, number) for seq, blocks in self._computing.items() for number in blocks)
        assert expected == self._announced
        assert {key: block for block, key in enumerate(self._hashes) if key is not None} == self._cached

    def _num_reusable(self, seq: Sequence) -> int:
        """How many blocks of `seq` may come from the cache."""
        if not self._prefix_caching or seq.sampling.prompt_logprobs is not None:  # those need every position computed
            return 0
        return (seq.num_tokens - 1) // self.block_size

    def _withdraw(self, seq: Sequence, stop: int) -> None:
        """End the announcement of a sequence's blocks below `stop`: they are computed, or will not be."""
        announced = self._computing.pop(seq, range(0))
        for number in range(announced.start, min(stop, announced.stop)):
            key = self._hash(seq, number)
            self._announced[key] -= 1
            if not self._announced[key]:
                del self._announced[key]
        if stop < announced.stop:
            self._computing[seq] = range(max(stop, announced.start), announced.stop)

    def _take(self) -> int:
        """A blank block, or the one that has been unheld the longest."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._unheld.popitem(last=False)
            self._forget(block)
        self._num_holders[block] = 1
        self.num_ever_taken = max(self.num_ever_taken, block + 1)
        return block

    def _forget(self, block: int) -> None:
        key = self._hashes[block]
        if key is not None:
            del self._cached[key]
            self._hashes[block] = None

    def _hash(self, seq: Sequence, number: int) -> bytes:
        """The hash of a sequence's block by its place; each depends on the one before, and is computed once."""
        hashes = seq.block_hashes
        while len(hashes) <= number:
            first = len(hashes) * self.block_size
            tokens = array("q", seq.token_ids[first : first + self.block_size])
            hashes.append(hashlib.sha256((hashes[-1] if hashes else seq.terms.tenant) + tokens.tobytes()).digest())
        return hashes[number]

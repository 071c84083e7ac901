"""Blocks that are found again by the tokens in them, and those that running sequences are computing this moment.

Knows hashes and blocks. Who holds a block, and which hash a sequence's block has, is KVCacheManager's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(slots=True, eq=False)
class Block:
    """One block of the pool: how many sequences hold it, and the hash under which it is cached, if it is."""

    block_id: int
    ref_count: int = 0
    hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The first num_blocks blocks of a sequence, of which the cache has all that later queries see.

    Attributes:
        blocks: these, by group and number.
    """

    num_blocks: int
    blocks: list[dict[int, Block]]


class PrefixCache:
    """Full blocks by the hash of their tokens.

    A cached block that no sequence holds can be evicted: the one that was released first goes first.
    """

    def __init__(self) -> None:
        self.blocks: dict[bytes, Block] = {}
        self.evictable: OrderedDict[int, Block] = OrderedDict()  # block id -> block of ref_count 0, next victim first

    def find(self, block_hash: bytes) -> Block | None:
        """The block that is cached under a hash."""
        return self.blocks.get(block_hash)

    def hold(self, block: Block) -> None:
        """A sequence takes a cached block into its table, so that the block cannot be evicted."""
        self.evictable.pop(block.block_id, None)

    def let_go(self, block: Block) -> None:
        """The last sequence has released a cached block, which can be evicted from now on."""
        self.evictable[block.block_id] = block

    def insert(self, block: Block, block_hash: bytes) -> None:
        """Cache a block that is full and computed, unless an equal one is cached."""
        if block.hash is None and block_hash not in self.blocks:
            block.hash = block_hash
            self.blocks[block_hash] = block

    def remove(self, block: Block) -> None:
        """Let nobody find a block any more."""
        if block.hash is not None:
            del self.blocks[block.hash]
            block.hash = None

    def evict(self) -> Block:
        """Give up the block that has been evictable the longest; there must be one."""
        _, block = self.evictable.popitem(last=False)
        self.remove(block)
        return block


class InFlightPrefixes:
    """The hashes of blocks that running sequences are computing, so that others can wait for them."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._counts

    def add(self, hashes: Iterable[bytes]) -> None:
        """Announce blocks."""
        self._counts.update(hashes)

    def remove(self, hashes: Iterable[bytes]) -> None:
        """Withdraw blocks that are computed, or will not be."""
        for block_hash in hashes:
            self._counts[block_hash] -= 1
            if not self._counts[block_hash]:
                del self._counts[block_hash]

    def check(self, hashes: Iterable[bytes]) -> None:
        """Assert that just these are announced."""
        assert Counter(hashes) == self._counts, "announced blocks are off"

"""The blocks of the pool: how many sequences hold each, which are free, which can be found, how many are promised.

Knows no sequences and no tokens: who holds a block, and what it holds, is KVCacheManager's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.prefix_cache import Block, PrefixCache

if TYPE_CHECKING:
    from collections.abc import Collection


class BlockPool:
    """Every block is on the free list, in the prefix cache as evictable, or held by as many as its ref_count says.

    Some free blocks are promised. Blocks of groups with a window (engine.retention) are counted as if nobody shared
    them: where several sequences hold one, each may release it first and take another, so as many are promised.

    Attributes:
        num_promised: free blocks that are kept for sequences which may take them at any time.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.prefix_cache = PrefixCache()
        self.num_promised = 0
        self._blocks: list[Block] = []  # those that were ever taken; the rest of the pool is free
        self._free: list[Block] = []  # a stack: the block released last is still in the CPU's caches

    def __getitem__(self, block_id: int) -> Block:
        return self._blocks[block_id]

    @property
    def num_ever_taken(self) -> int:
        """The first so many blocks have been taken; the others never."""
        return len(self._blocks)

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds."""
        return self.num_blocks - len(self._blocks) + len(self._free) + len(self.prefix_cache.evictable)

    @property
    def num_available(self) -> int:
        """Free blocks that are promised to nobody."""
        return self.num_free - self.num_promised

    def take(self) -> int:
        """A free block's id; only where none is left, a cached one is evicted."""
        if self._free:
            block = self._free.pop()
        elif len(self._blocks) < self.num_blocks:
            block = Block(len(self._blocks))
            self._blocks.append(block)
        else:
            block = self.prefix_cache.evict()
        block.ref_count = 1
        return block.block_id

    def hold(self, block: Block, *, in_window: bool) -> int:
        """Have one more sequence hold a cached block; its id."""
        self.prefix_cache.hold(block)
        self.num_promised += in_window and block.ref_count > 0
        block.ref_count += 1
        return block.block_id

    def let_go(self, block_id: int, *, in_window: bool) -> None:
        """Have one sequence less hold a block; the one way in which blocks become free."""
        block = self._blocks[block_id]
        block.ref_count -= 1
        assert block.ref_count >= 0, "a block was released twice"
        if block.ref_count > 0:
            self.num_promised -= in_window
        elif block.hash is None:
            self._free.append(block)
        else:
            self.prefix_cache.let_go(block)

    def cache(self, block_id: int, block_hash: bytes) -> None:
        """Let a block be found by a hash."""
        self.prefix_cache.insert(self._blocks[block_id], block_hash)

    def forget(self, block: Block) -> None:
        """Let nobody find a block any more."""
        self.prefix_cache.remove(block)
        if block.ref_count == 0:
            self.prefix_cache.hold(block)
            self._free.append(block)

    def check(self, ref_counts: Collection[int]) -> None:
        """Assert that each block is in one state, and held by as many as these counts say, by its id."""
        assert list(ref_counts) == [block.ref_count for block in self._blocks], "reference counts are off"
        cache, in_tables = self.prefix_cache, [i for i, count in enumerate(ref_counts) if count]
        free = [block.block_id for block in self._free]
        assert sorted([*free, *cache.evictable, *in_tables]) == list(range(len(self._blocks))), (
            "blocks leaked or doubled"
        )
        assert all(block.hash is None for block in self._free)
        assert {block.hash: block for block in self._blocks if block.hash is not None} == cache.blocks
        assert 0 <= self.num_promised <= self.num_free, "more is promised than free"

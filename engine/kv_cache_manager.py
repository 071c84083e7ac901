"""Which KV block belongs to whom: block ids, nothing of their contents (those are model_runner's KVCachePool).

Costs: allocate and release are O(blocks moved); nothing here grows with the pool or with idle sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence


class KVCacheManager:
    """Hands out the blocks of a fixed pool."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(reversed(range(num_blocks)))  # a stack: the block freed last is still in the CPU's caches

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        """Blocks that live sequences hold."""
        return self.num_blocks - len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def num_missing_blocks(self, seq: Sequence, num_tokens: int) -> int:
        """Blocks that `seq` lacks to hold its first `num_tokens` tokens."""
        return max(0, self.num_blocks_for(num_tokens) - len(seq.block_table))

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Give `seq` the blocks for its first `num_tokens` tokens: all that it lacks, or none and False."""
        missing = self.num_missing_blocks(seq, num_tokens)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            seq.block_table.append(self._free.pop())
        return True

    def release(self, seq: Sequence) -> None:
        """Take back every block of `seq`; the one way in which blocks become free."""
        self._free.extend(reversed(seq.block_table))
        seq.block_table.clear()
        assert len(self._free) <= self.num_blocks, "a block was released twice"

    def check_idle(self) -> None:
        """Assert that every block is free, once: what must hold when no sequence is live."""
        assert sorted(self._free) == list(range(self.num_blocks)), "blocks leaked or doubled"

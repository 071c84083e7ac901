"""Which blocks of keys each block of queries sees, as tensors: how local and block-sparse attention avoid T x T.

The rules are kernels.attention_pattern's. A plan depends on a layer's pattern and the number of tokens, and is kept.

Shapes: n blocks of S positions (n * S >= T), V blocks that are visible to a block at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from kernels.attention_pattern import AttentionPattern, BlockSparseAttention, LocalAttention

_LEAST_BLOCK = 64  # positions; below, matrix products are too small to be fast
HIDDEN = -1e30  # what is added to a score that is not visible; finite, since -inf less -inf is not a number


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The visible blocks of all blocks of queries.

    Attributes:
        size: S.
        visible_nV: int64, numbers of blocks, ascending; rows that see fewer begin with -1.
        window: positions that a query sees, its own included; None if whole blocks are seen.
    """

    size: int
    visible_nV: torch.Tensor
    window: int | None

    @property
    def num_positions(self) -> int:
        """Positions of all blocks, n * S."""
        return len(self.visible_nV) * self.size

    def key_blocks(self) -> torch.Tensor:
        """The blocks to gather, [n * V]; block 0 in place of none."""
        return self.visible_nV.clamp(min=0).flatten()

    def mask(self, dtype: torch.dtype, group: int) -> torch.Tensor:
        """What is added to scores, [n, group * S, V * S]: 0 where a query sees a key. Queries come `group` times."""
        rows = torch.arange(len(self.visible_nV))[:, None]
        behind_nV = torch.where(self.visible_nV < 0, -1, rows - self.visible_nV)  # blocks from the key's to the query's
        return _mask(tuple(map(tuple, behind_nV.tolist())), self.size, self.window, dtype, group)


@lru_cache(maxsize=64)
def block_plan(pattern: AttentionPattern, num_tokens: int) -> BlockPlan | None:
    """The plan for rows of this length; None if every query sees all positions up to its own."""
    if isinstance(pattern, LocalAttention) and pattern.window < num_tokens:
        size = max(_LEAST_BLOCK, pattern.window // 4)
        reach = -(-(pattern.window - 1) // size)  # blocks before a query's own that its window touches
        rows = torch.arange(-(-num_tokens // size))[:, None]
        return BlockPlan(size, (rows + torch.arange(-reach, 1)).clamp(min=-1), pattern.window)
    if isinstance(pattern, BlockSparseAttention):
        num_blocks = -(-num_tokens // pattern.block_size)
        if num_blocks > pattern.max_blocks:
            return BlockPlan(pattern.block_size, _table(pattern, num_blocks), None)
    return None


def _table(pattern: BlockSparseAttention, num_blocks: int) -> torch.Tensor:
    rows = [pattern.visible_blocks(block) for block in range(num_blocks)]
    return torch.tensor([[-1] * (pattern.max_blocks - len(row)) + list(row) for row in rows])


@lru_cache(maxsize=16)
def _mask(
    behind: tuple[tuple[int, ...], ...], size: int, window: int | None, dtype: torch.dtype, group: int
) -> torch.Tensor:
    """The mask of blocks that lie so many blocks behind a query's own (-1: no block). Layers mostly share one."""
    behind_nV11 = torch.tensor(behind, dtype=torch.int32)[:, :, None, None]
    within = torch.arange(size, dtype=torch.int32)
    distance_nVSS = behind_nV11 * size + within[:, None] - within  # from a key to a query
    is_visible = (behind_nV11 >= 0) & (distance_nVSS >= 0)
    if window is not None:
        is_visible &= distance_nVSS < window
    mask = torch.zeros(is_visible.shape, dtype=dtype).masked_fill_(~is_visible, HIDDEN)
    return mask.transpose(1, 2).flatten(2).repeat(1, group, 1)

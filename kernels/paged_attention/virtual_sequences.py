"""A batch under an attention pattern, as a batch of plain causal attention.

All queries of a sparse block see the same cached blocks. So the queries of a sequence in one sparse block are a
*virtual sequence*: its block table is the list of the blocks that they see, its context ends at its last query's own
place, and causal attention over it is exact. Kernels compute it as any other sequence, and read nothing else.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kernels.attention_pattern import AttentionPattern, BlockSparseAttention, LocalAttention

if TYPE_CHECKING:
    from kernels.paged_attention.batch import AttentionBatch


def under_pattern(batch: AttentionBatch, pattern: AttentionPattern) -> AttentionBatch:
    """The batch whose causal attention is that of `batch` under the pattern, with its tokens in the same order.

    Raises:
        ValueError: a sparse block is not made of whole blocks of the cache.
    """
    match pattern:
        case LocalAttention(window):
            return dataclasses.replace(batch, window=window)
        case BlockSparseAttention():
            return _virtual_sequences(batch, pattern)
        case _:
            return batch


def _virtual_sequences(batch: AttentionBatch, pattern: BlockSparseAttention) -> AttentionBatch:
    size = pattern.block_size
    if size % batch.block_size:
        raise ValueError(f"a sparse block of {size} positions is not made of whole blocks of {batch.block_size} slots")
    query_lens: list[int] = []
    context_lens: list[int] = []
    block_tables: list[list[int]] = []
    for i, context_len in enumerate(batch.context_lens):
        position = context_len - batch.query_lens[i]
        while position < context_len:
            own = position // size
            end = min((own + 1) * size, context_len)
            blocks = pattern.visible_blocks(own)
            table = _gather(batch, i, blocks, size // batch.block_size)
            if blocks[-1] == own:
                query_lens.append(end - position)
                context_lens.append((len(blocks) - 1) * size + end - own * size)
                block_tables.append(table)
            else:  # each query sees all of the same earlier blocks, so none may be behind another
                query_lens += [1] * (end - position)
                context_lens += [len(blocks) * size] * (end - position)
                block_tables += [table] * (end - position)
            position = end
    return dataclasses.replace(
        batch,
        query_lens=query_lens,
        context_lens=context_lens,
        block_tables=block_tables,
        first_blocks=[0] * len(block_tables),
    )


def _gather(batch: AttentionBatch, i: int, sparse_blocks: tuple[int, ...], ratio: int) -> list[int]:
    """Ids of the blocks of the cache that make these sparse blocks, `ratio` each, of which the last may end early."""
    table, offset = batch.block_tables[i], batch.first_blocks[i]
    assert sparse_blocks[0] * ratio >= offset, "a block that a query sees is released"
    return [block for c in sparse_blocks for block in table[c * ratio - offset : (c + 1) * ratio - offset]]

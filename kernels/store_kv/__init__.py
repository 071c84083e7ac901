"""Write the keys or values of a step's tokens into the paged cache.

    store_kv(x_TKD, cache_BKSD, blocks_T, offsets_T)       cache[block, :, offset] = x, in place

T tokens, K key heads, D values a head, B blocks of S slots. A block keeps each head's slots together, so that a gather
by (block, head) lands in the order that batched products want. blocks and offsets are int64, each pair at most once.
"""

from kernels.store_kv import reference, torch

__all__ = ["reference", "torch"]

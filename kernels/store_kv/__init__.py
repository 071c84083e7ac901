"""Write rows into the paged cache, in place.

    store_kv(x_TKD, cache_BKSD, slot_mapping_T)               cache[slot // S, :, slot % S] = x

slot_mapping is int64: block * S + the offset in the block; each slot occurs at most once. In a block the slots of one
head are adjacent, so that a gather by (block, head) gives the operands of a batched product. Within these S x D values
the native kernels use their own order (paged_attention/layout.h).

Shapes: T tokens, K key heads, D values a head, B blocks of S slots.
"""

from kernels.store_kv import reference, torch_ops

__all__ = ["reference", "torch_ops"]

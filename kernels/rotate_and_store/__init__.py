"""Rotate a step's queries and keys (kernels.rotary), write its keys and values into the paged cache (kernels.store_kv).

    rotate_and_store(qkv_TXD, cos_TD, sin_TD, k_cache_BKSD, v_cache_BKSD, slot_mapping_T) -> q_TND

qkv has X = N + 2K heads: queries, keys, values. The caches are written in place; the rotated queries are returned.

Shapes: T tokens, N query heads, K key heads, D values a head, B blocks of S slots.
"""

from kernels.rotate_and_store import reference

__all__ = ["reference"]

"""Rotate a step's queries and keys (kernels.rotary), write its keys and values into the paged cache (kernels.store_kv).

    rotate_and_store(qkv_TXD, cos_TD, sin_TD, k_cache_BKSD, v_cache_BKSD, slot_mapping_T) -> q_TND

qkv has X = N + 2K heads: queries, keys, values. The caches are written in place; the rotated queries are returned.
Before keys are rounded to int8, they are multiplied with an orthonormal Hadamard matrix, which spreads their few large
values (kernels.packed_rows.rotate), if D is a multiple of 16. Queries are multiplied, too, so that scores stay as they
are. Packed rows are rotated by what writes and reads them.

Shapes: T tokens, N query heads, K key heads, D values a head, B blocks of S slots.
"""

from kernels.rotate_and_store import reference

__all__ = ["reference"]

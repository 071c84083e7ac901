"""Write a step's tokens into the paged cache, in place.

    store_kv(x_TKD, cache_BKSD, slot_mapping_T)               cache[slot // S, :, slot % S] = x
    rotate_and_store(qkv_TXD, cos_TD, sin_TD, k_cache_BKSD, v_cache_BKSD, slot_mapping_T) -> q_TND
        qkv has X = N + 2K heads: queries, keys, values. Rotates queries and keys (kernels.rotary), stores keys and
        values, returns queries
    store_latents(x_TY, weight_C, eps, cos_TR, sin_TR, cache_B1SY, slot_mapping_T)
        for latent attention: cache[slot // S, 0, slot % S] = [rms_norm(x[:C]) * weight, rotary(x[C:])]; Y = C + R

slot_mapping is int64: block * S + the offset in the block; each slot occurs at most once. In a block the slots of one
head are adjacent, so that a gather by (block, head) gives the operands of a batched product. Within these S x D values
the native kernels use their own order (paged_attention/layout.h).

Shapes: T tokens, K key heads, D values a head, B blocks of S slots.
"""

from kernels.store_kv import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

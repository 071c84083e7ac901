"""Write a step's tokens into the paged cache, in place.

    store_kv(x_TKD, cache_BKSD, slot_mapping_T)               cache[slot // S, :, slot % S] = x
    rotate_and_store(qkv_TXD, cos_TD, sin_TD, k_cache_BKSD, v_cache_BKSD, slot_mapping_T) -> q_TND
        qkv's X = N + 2K heads are queries, keys and values as projected: queries and keys are rotated (kernels.rotary),
        keys and values stored, and the queries returned
    store_latents(x_TY, weight_C, eps, cos_TR, sin_TR, cache_B1SY, slot_mapping_T)
        cache[slot // S, 0, slot % S] = rms_norm(x[:C]) * weight and rotary(x[C:]), for latent attention; Y = C + R

T tokens, K key heads, D values a head, B blocks of S slots. slot_mapping is int64, block * S + the slot within it, each
slot at most once. A block keeps each head's slots together, so that a gather by (block, head) lands in the order that
batched products want; within those S x D values the native kernels have an order of their own
(paged_attention/layout.h).
"""

from kernels.store_kv import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

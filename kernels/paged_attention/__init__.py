"""Causal (grouped-query) attention of a packed batch over a paged KV cache (PagedAttention, Kwon et al. 2023).

    backend.plan(batch) -> plan                              once a step, for all layers
    backend.forward(q_TND, k_cache_BKSD, v_cache_BKSD, plan, scale) -> o_TND      once a layer

The tokens of a step are packed, sequence after sequence, without padding. The queries of sequence s are the last
`query_lens[s]` of its `context_lens[s]` positions. All positions are cached already (`rotate_and_store` ran first).
Each query sees the positions up to its own. o has q's dtype. Cost: O(sum of query_len * context_len) arithmetic, O(sum
of context_len) memory traffic.

Shapes: T tokens, N query heads, K key heads (query head n reads key head n // (N/K)), D head dimension, B blocks of S
slots.
"""

from kernels.paged_attention.batch import AttentionBatch, LatentAttention, PagedAttention

__all__ = ["AttentionBatch", "LatentAttention", "PagedAttention"]

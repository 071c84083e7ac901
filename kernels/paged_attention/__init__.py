"""Causal (grouped-query) attention of a packed batch over a paged KV cache (PagedAttention, Kwon et al. 2023).

    backend.plan(batch, pattern) -> plan                     once a step, for all layers with the same pattern
    backend.forward(q_TND, k_cache_BKSD, v_cache_BKSD, plan, scale) -> o_TND      once a layer

The tokens of a step are packed, sequence after sequence, without padding. The queries of sequence s are the last
`query_lens[s]` of its `context_lens[s]` positions. All positions are cached already (`rotate_and_store` ran first).
Each query sees the positions up to its own that the pattern (kernels.attention_pattern) allows. o has q's dtype. Cost,
of V visible positions a query: O(sum of query_len * V) arithmetic, O(sum of V) memory traffic for decoding sequences.

Shapes: T tokens, N query heads, K key heads (query head n reads key head n // (N/K)), D head dimension, B blocks of S
slots.
"""

from kernels.paged_attention.batch import AttentionBatch, LatentAttention, PagedAttention

__all__ = ["AttentionBatch", "LatentAttention", "PagedAttention"]

"""Causal attention of a packed batch over a paged KV cache (PagedAttention, Kwon et al. 2023), grouped-query included.

A step's tokens lie one sequence after another, without padding; sequence s asks for its last `query_lens[s]` of
`context_lens[s]` positions, all of which are in the cache (`store_kv` ran first). Query i of a sequence sees the
positions up to its own.

    backend.plan(batch) -> plan                              once a step: what all layers share
    backend.forward(q_TND, k_cache_BKSD, v_cache_BKSD, plan, scale) -> o_TND      once a layer

T tokens, N query heads, K key heads (N a multiple of K; query head n reads key head n // (N/K)), D head dimension,
B blocks of S slots. o has q's dtype. Cost: O(sum of query_len * context_len) arithmetic and O(sum of context_len)
memory traffic; blocks that no sequence of the batch holds cost nothing.
"""

from kernels.paged_attention.batch import AttentionBatch, LatentAttention, PagedAttention

__all__ = ["AttentionBatch", "LatentAttention", "PagedAttention"]

"""Attention over cached latents: multi-head latent attention in its absorbed form (DeepSeek-V2, arXiv 2405.04434).

    backend.plan(batch) -> plan                                   once a step; the same plan as kernels.paged_attention
    backend.forward(q_TNX, cache_B1SX, plan, scale, value_dim, selection) -> o_TNC      once a layer

All N query heads share one key and one value for each position: the key is the cached vector of X = C + R values
(latent, then rotary key), the value is its first C = value_dim values. Each query sees the positions up to its own; a
`selection` (kernels.lightning_indexer) reduces them. Of the native versions, one takes selections. Cost: O(sum of
query_len * context_len * N * X); with a selection, O(N * X * topk) for a decoding sequence.

Shapes: T tokens, N heads, B blocks of S slots.
"""

from kernels.latent_attention import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

"""The lightning indexer of DeepSeek-V3.2: selects the positions that each query attends to.

    lightning_indexer(q_THI, weights_TH, cache_B1SI, plan, topk) -> selection; None if no context exceeds topk

    score of a position = sum over heads of weight * relu(q . k)

A query selects its topk best positions up to its own; of equal scores, the first. weights include the scale, in fp32.
The type of the selection depends on the version; kernels.latent_attention of the same version takes it. Cost: O(sum of
query_len * context_len * H * I).

Shapes: T tokens, H index heads, I index_head_dim, B blocks of S slots.
"""

from kernels.lightning_indexer import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

"""The lightning indexer of DeepSeek-V3.2: which positions each query attends to.

    lightning_indexer(q_THI, weights_TH, cache_B1SI, plan, topk) -> selection; None where no context exceeds topk

    score of a position = sum over heads of weight * relu(q . k);  a query keeps its topk best positions up to its own,
    of equal ones the first.

q and k carry their scale; weights are fp32. The selection is what kernels.latent_attention of the same version takes.
Cost: O(sum of query_len * context_len * H * I): small heads, so that the attention itself need not grow with the
context.

Shapes: T tokens, H index heads, I index_head_dim, B blocks of S slots.
"""

from kernels.lightning_indexer import reference, torch_ops

__all__ = ["reference", "torch_ops"]

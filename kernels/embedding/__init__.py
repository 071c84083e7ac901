"""Token embeddings in fp32: the start of the residual stream.

    embedding(weight_VH, token_ids_T) -> x_TH        x[t] = weight[token_ids[t]]; token ids int64, x fp32

Shapes: V vocab, T tokens, H hidden.
"""

from kernels.embedding import reference

__all__ = ["reference"]

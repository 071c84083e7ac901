"""Embeddings of tokens, in fp32, as the residual stream begins.

    embedding(weight_VH, token_ids_T) -> x_TH        x[t] = weight[token_ids[t]]; token ids int64, x fp32

Shapes: V vocab, T tokens, H hidden.
"""

from kernels.embedding import reference

__all__ = ["reference"]

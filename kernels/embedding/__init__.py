"""Token embeddings in fp32: the start of the residual stream.

    embedding(weight_VH, token_ids_T) -> x_TH        x[t] = weight[token_ids[t]]; token ids int64, x fp32

The weight is a tensor, or a BlockWeight (kernels.block_weight), of which only the rows asked for are read. Native
kernels round its values to the activations' dtype, so that they are those of the expanded tensor.

Shapes: V vocab, T tokens, H hidden.
"""

from kernels.embedding import reference

__all__ = ["reference"]

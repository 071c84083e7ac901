"""Token embeddings that differ by modality (text, code, image), in fp32: the start of DynamicMoE's residual stream.

    modality_embedding(weight_VH, scale_MH, shift_MH, token_ids_T, modality_ids_T or None) -> x_TH fp32

x[t] = weight[token_ids[t]] * (1 + scale[m]) + shift[m], where m = modality_ids[t], or 0 for all tokens if there are
none. Ids are int64; scale and shift are fp32.

Shapes: V vocab, M modalities, T tokens, H hidden.
"""

from kernels.modality_embedding import reference

__all__ = ["reference"]

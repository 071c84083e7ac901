"""causal_attention in native code (native.cpp). Contract: kernels.causal_attention."""

import torch

from kernels import native


def causal_attention(q_QNX: torch.Tensor, k_LNX: torch.Tensor, v_LNV: torch.Tensor, scale: float) -> torch.Tensor:
    o_QNV = q_QNX.new_empty(*q_QNX.shape[:2], v_LNV.shape[2])
    native.library.causal_attention(q_QNX, k_LNX, v_LNV, scale, o_QNV)
    return o_QNV

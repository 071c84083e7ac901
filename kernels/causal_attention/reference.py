"""causal_attention, head by head, in fp32. Contract: kernels.causal_attention."""

import torch


def causal_attention(q_QNX: torch.Tensor, k_LNX: torch.Tensor, v_LNV: torch.Tensor, scale: float) -> torch.Tensor:
    num_queries, context_len = len(q_QNX), len(k_LNX)
    out = q_QNX.new_empty(*q_QNX.shape[:2], v_LNV.shape[2])
    hidden = torch.ones(num_queries, context_len, dtype=torch.bool, device=q_QNX.device).triu(
        context_len - num_queries + 1
    )
    for head in range(q_QNX.shape[1]):
        scores = q_QNX[:, head].float() @ k_LNX[:, head].float().T * scale
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[:, head] = (weights @ v_LNV[:, head].float()).to(out.dtype)
    return out

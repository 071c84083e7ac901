"""causal_attention as batched products, in slices of queries. Contract: kernels.causal_attention."""

import torch

_QUERIES_AT_ONCE = 128  # positions after the last query of a slice are skipped


def causal_attention(q_QNX: torch.Tensor, k_LNX: torch.Tensor, v_LNV: torch.Tensor, scale: float) -> torch.Tensor:
    num_queries, num_heads, _ = q_QNX.shape
    context_len = len(k_LNX)
    q_NQX, k_NLX, v_NLV = (x.transpose(0, 1).contiguous() for x in (q_QNX, k_LNX, v_LNV))
    o_NQV = q_QNX.new_empty(num_heads, num_queries, v_LNV.shape[2])
    for first in range(0, num_queries, _QUERIES_AT_ONCE):
        last = min(first + _QUERIES_AT_ONCE, num_queries)
        seen = context_len - num_queries + last  # positions up to the last of these queries
        scores_NQL = torch.bmm(q_NQX[:, first:last], k_NLX[:, :seen].transpose(1, 2)).mul_(scale)
        own = scores_NQL[:, :, seen - (last - first) :]  # the slice's own positions
        own.masked_fill_(own.new_ones(own.shape[1:], dtype=torch.bool).triu_(1), float("-inf"))
        torch.bmm(scores_NQL.softmax(-1), v_NLV[:, :seen], out=o_NQV[:, first:last])
    return o_NQV.transpose(0, 1)

"""Attention, sequence by sequence and head by head, in fp32. Contract: kernels.paged_attention."""

import torch

from kernels.kv_cache import Cache, take, values_of
from kernels.paged_attention.batch import AttentionBatch


class ReferenceAttention:
    """Softmax over all visible positions."""

    reads_unwritten_slots = False

    def plan(self, batch: AttentionBatch) -> AttentionBatch:
        return batch

    def forward(
        self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: AttentionBatch, scale: float
    ) -> torch.Tensor:
        group = q_TND.shape[1] // values_of(k_cache).shape[1]
        out, first = torch.empty_like(q_TND), 0
        for query_len, context_len, table in zip(plan.query_lens, plan.context_lens, plan.block_tables, strict=True):
            block_ids = torch.tensor(table, device=q_TND.device)
            keys_KLD, values_KLD = (
                take(cache, block_ids, torch.float32).transpose(0, 1).flatten(1, 2)[:, :context_len].float()
                for cache in (k_cache, v_cache)
            )
            visible = torch.ones(query_len, context_len).tril(context_len - query_len).bool().to(q_TND.device)
            for head in range(q_TND.shape[1]):
                query = q_TND[first : first + query_len, head].float()
                scores = query @ keys_KLD[head // group].T * scale
                weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
                out[first : first + query_len, head] = (weights @ values_KLD[head // group]).to(out.dtype)
            first += query_len
        return out

"""Latent attention, query by query, in fp32. Contract: kernels.latent_attention."""

import torch

from kernels.kv_cache import Cache, take
from kernels.lightning_indexer.reference import ReferenceSelection
from kernels.paged_attention.batch import AttentionBatch


class ReferenceLatentAttention:
    """Softmax over all visible positions."""

    reads_unwritten_slots = False

    def plan(self, batch: AttentionBatch) -> AttentionBatch:
        return batch

    def forward(
        self,
        q_TNX: torch.Tensor,
        cache: Cache,
        plan: AttentionBatch,
        scale: float,
        value_dim: int,
        selection: ReferenceSelection | None,
    ) -> torch.Tensor:
        out = q_TNX.new_empty(*q_TNX.shape[:2], value_dim)
        token = 0
        for query_len, context_len, table in zip(plan.query_lens, plan.context_lens, plan.block_tables, strict=True):
            block_ids = torch.tensor(table, device=q_TNX.device)
            latents_LX = take(cache, block_ids, torch.float32, first=value_dim).flatten(0, 2)[:context_len].float()
            for position in range(context_len - query_len, context_len):
                seen_LX = latents_LX[: position + 1] if selection is None else latents_LX[selection[token]]
                scores_NL = q_TNX[token].float() @ seen_LX.T * scale
                out[token] = (scores_NL.softmax(-1) @ seen_LX[:, :value_dim]).to(out.dtype)
                token += 1
        return out

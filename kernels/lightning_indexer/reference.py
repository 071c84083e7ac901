"""The indexer, query by query. Contract: kernels.lightning_indexer."""

import torch

from kernels.paged_attention.batch import AttentionBatch

ReferenceSelection = list[list[int]]  # the positions that each token attends to


def lightning_indexer(
    q_THI: torch.Tensor, weights_TH: torch.Tensor, cache: torch.Tensor, plan: AttentionBatch, topk: int
) -> ReferenceSelection | None:
    if max(plan.context_lens) <= topk:
        return None
    selection: ReferenceSelection = []
    for query_len, context_len, table in zip(plan.query_lens, plan.context_lens, plan.block_tables, strict=True):
        keys_LI = cache[table].flatten(0, 2)[:context_len].float()
        for position in range(context_len - query_len, context_len):
            token = len(selection)
            scores_HL = (q_THI[token].float() @ keys_LI[: position + 1].T).relu()
            scores_L = weights_TH[token].float() @ scores_HL
            best_L = scores_L.sort(descending=True, stable=True).indices
            selection.append(sorted(best_L[:topk].tolist()))
    return selection

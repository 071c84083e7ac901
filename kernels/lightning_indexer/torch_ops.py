"""The indexer as matrix products, on any device. Contract: kernels.lightning_indexer.

Shapes: G sequences of a decode group, L padded context, Q queries of a chunk, P positions kept.
"""

from dataclasses import dataclass

import torch

from kernels.paged_attention.torch_ops import DecodeGroup, Plan, Prefill

_QUERIES_AT_ONCE = 64  # of a prefill chunk; their scores are sorted together


@dataclass(frozen=True, slots=True)
class Selection:
    """The positions that queries attend to.

    Attributes:
        positions: [G, P] for each decode group, or None for all positions; may contain masked positions.
        visible: [Q, L] for each prefill chunk, or None for the plain causal order.
    """

    positions: list[torch.Tensor | None]
    visible: list[torch.Tensor | None]


def lightning_indexer(
    q_THI: torch.Tensor, weights_TH: torch.Tensor, cache: torch.Tensor, plan: Plan, topk: int
) -> Selection | None:
    positions = [
        _select_decodes(
            q_THI.index_select(0, group.rows_G), weights_TH.index_select(0, group.rows_G), cache, group, topk
        )
        for group in plan.groups
    ]
    visible = select_prefills(q_THI, weights_TH, cache, plan.prefills, topk)
    if all(kept is None for kept in (*positions, *visible)):
        return None
    return Selection(positions, visible)


def select_prefills(
    q_THI: torch.Tensor, weights_TH: torch.Tensor, cache: torch.Tensor, prefills: list[Prefill], topk: int
) -> list[torch.Tensor | None]:
    """What the queries of each chunk see, [Q, L]; None where a context does not exceed topk."""
    return [_select_prefill(q_THI[p.first : p.last], weights_TH[p.first : p.last], cache, p, topk) for p in prefills]


def _select_decodes(
    q_GHI: torch.Tensor, weights_GH: torch.Tensor, cache: torch.Tensor, group: DecodeGroup, topk: int
) -> torch.Tensor | None:
    blocks_GB = group.block_ids_G1B[:, 0]
    keys_GLI = cache.index_select(0, blocks_GB.flatten()).view(len(q_GHI), -1, cache.shape[-1])
    if keys_GLI.shape[1] <= topk:
        return None
    scores_GHL = torch.bmm(q_GHI.float(), keys_GLI.float().transpose(1, 2)).relu_()
    scores_GL = torch.bmm(weights_GH[:, None], scores_GHL)[:, 0] + group.mask_G11L[:, 0, 0]
    return _best(scores_GL, topk)


def _select_prefill(
    q_QHI: torch.Tensor, weights_QH: torch.Tensor, cache: torch.Tensor, prefill: Prefill, topk: int
) -> torch.Tensor | None:
    context_len, num_queries = prefill.context_len, len(q_QHI)
    if context_len <= topk:
        return None
    keys_LI = cache.index_select(0, prefill.block_ids).view(-1, cache.shape[-1])[:context_len].float()
    positions_L = torch.arange(context_len, device=q_QHI.device)
    visible_QL = torch.zeros(num_queries, context_len, dtype=torch.bool, device=q_QHI.device)
    for first in range(0, num_queries, _QUERIES_AT_ONCE):
        rows = slice(first, min(first + _QUERIES_AT_ONCE, num_queries))
        pairs = zip(q_QHI[rows], weights_QH[rows], strict=True)
        scores_RL = torch.stack([weight @ (q.float() @ keys_LI.T).relu_() for q, weight in pairs])
        own = context_len - num_queries + torch.arange(rows.start, rows.stop, device=q_QHI.device)
        causal_RL = positions_L <= own[:, None]
        best = _best(scores_RL.masked_fill_(~causal_RL, float("-inf")), topk)
        visible_QL[rows] = torch.zeros_like(causal_RL).scatter_(1, best, True).logical_and_(causal_RL)
    return visible_QL


def _best(scores_XL: torch.Tensor, topk: int) -> torch.Tensor:
    """The topk best positions of each row; of equal scores (zeros, after relu) the first, in any batch."""
    return scores_XL.sort(dim=-1, descending=True, stable=True).indices[:, :topk]

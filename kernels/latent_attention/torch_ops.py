"""Latent attention as matrix products, on any device. Contract: kernels.latent_attention.

Decoding sequences are gathered into padded groups (the plan of kernels.paged_attention.torch_ops); the heads of a
sequence are the rows of one matrix. A prefill chunk is computed in slices of queries, over the positions up to the
slice's last query. This bounds the memory of the scores and skips most masked positions.

Shapes: G sequences of a group, L padded context, Q queries of a chunk.
"""

import torch

from kernels.kv_cache import Cache, take
from kernels.lightning_indexer.torch_ops import Selection
from kernels.paged_attention.batch import AttentionBatch
from kernels.paged_attention.torch_ops import DecodeGroup, Plan, Prefill, TorchAttention

_QUERIES_AT_ONCE = 128
_MAX_SCORES = 1 << 25  # in memory during a prefill


class TorchLatentAttention:
    """Gather by block, then matrix products."""

    reads_unwritten_slots = True

    def __init__(self, dtype: torch.dtype) -> None:
        self._planner = TorchAttention(dtype, masks_prefills=False)

    def plan(self, batch: AttentionBatch) -> Plan:
        return self._planner.plan(batch)

    def forward(
        self,
        q_TNX: torch.Tensor,
        cache: Cache,
        plan: Plan,
        scale: float,
        value_dim: int,
        selection: Selection | None,
    ) -> torch.Tensor:
        out = q_TNX.new_empty(*q_TNX.shape[:2], value_dim)
        for i, group in enumerate(plan.groups):
            positions = selection.positions[i] if selection is not None else None
            q_GNX = q_TNX.index_select(0, group.rows_G)
            out.index_copy_(0, group.rows_G, _attend_decodes(q_GNX, cache, group, positions, scale, value_dim))
        for i, prefill in enumerate(plan.prefills):
            visible = selection.visible[i] if selection is not None else None
            q_QNX = q_TNX[prefill.first : prefill.last]
            out[prefill.first : prefill.last] = attend_prefill(q_QNX, cache, prefill, visible, scale, value_dim)
        return out


def _attend_decodes(
    q_GNX: torch.Tensor,
    cache: Cache,
    group: DecodeGroup,
    positions_GP: torch.Tensor | None,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    blocks_GB = group.block_ids_G1B[:, 0]
    mask_G1L = group.mask_G11L[:, 0]
    if positions_GP is None:
        latents_GLX = take(cache, blocks_GB.flatten(), q_GNX.dtype, first=value_dim).view(
            len(q_GNX), -1, q_GNX.shape[2]
        )
    else:
        assert isinstance(cache, torch.Tensor), "the engine refuses a quantised cache for a model with an indexer"
        block_size = cache.shape[2]
        blocks_GP = blocks_GB.gather(1, positions_GP // block_size)
        latents_GLX = cache[blocks_GP, 0, positions_GP % block_size]
        # The selection of a shorter sequence is padded with masked positions.
        mask_G1L = mask_G1L.gather(2, positions_GP[:, None])
    scores_GNL = torch.bmm(q_GNX, latents_GLX.transpose(1, 2)).mul_(scale).add_(mask_G1L)
    return torch.bmm(scores_GNL.softmax(-1), latents_GLX[..., :value_dim])


def attend_prefill(
    q_QNX: torch.Tensor,
    cache: Cache,
    prefill: Prefill,
    visible_QL: torch.Tensor | None,
    scale: float,
    value_dim: int,
) -> torch.Tensor:
    """[Q, N, value_dim]: a chunk over its context, or what its queries see of it."""
    context_len = prefill.context_len
    latents_LX = take(cache, prefill.block_ids, q_QNX.dtype, first=value_dim).view(-1, q_QNX.shape[2])[:context_len]
    num_queries, num_heads = q_QNX.shape[:2]
    step = max(1, min(_QUERIES_AT_ONCE, _MAX_SCORES // (num_heads * context_len)))
    out = []
    for first in range(0, num_queries, step):
        q_RNX = q_QNX[first : first + step]
        seen = context_len - num_queries + first + len(q_RNX)  # positions up to the last of these queries
        scores_RNL = (q_RNX @ latents_LX[:seen].T).mul_(scale)
        if visible_QL is not None:
            scores_RNL.masked_fill_(~visible_QL[first : first + step, None, :seen], float("-inf"))
        else:  # later positions of the same slice are masked
            own = scores_RNL[:, :, seen - len(q_RNX) :]
            own.masked_fill_(own.new_ones(len(q_RNX), len(q_RNX), dtype=torch.bool).triu_(1)[:, None], float("-inf"))
        out.append(scores_RNL.softmax(-1) @ latents_LX[:seen, :value_dim])
    return torch.cat(out)

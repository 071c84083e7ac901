"""Attention through torch's own operators, on any device. Contract: kernels.paged_attention.

Decoding sequences are sorted by context length into groups; the longest of a group is at most twice as long as the
shortest. The blocks of a group are gathered into one padded batch and multiplied as batched matrices. The query heads
that share a key head are rows of one matrix, so keys are not repeated. Prefill chunks are computed one by one with
scaled_dot_product_attention.

Shapes: G sequences of a group, K key heads, R query heads for each key head, L padded context, D head dimension, Q
queries of a chunk.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kernels.kv_cache import Cache, Int8Cache, take, values_of
from kernels.paged_attention.batch import AttentionBatch


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decoding sequences of similar length.

    Attributes:
        rows_G: the sequences' rows in the packed batch.
        block_ids_G1B: the sequences' blocks, padded to the same number.
        mask_G11L: 0 where visible, else -inf.
    """

    rows_G: torch.Tensor
    block_ids_G1B: torch.Tensor
    mask_G11L: torch.Tensor


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prefill chunk: rows `first` to `last` of the packed batch over the first `context_len` positions.

    Attributes:
        mask_QL: the positions that each query sees. None if the chunk starts its sequence (is_causal suffices), and for
            latent attention, which does not use it.
    """

    first: int
    last: int
    context_len: int
    block_ids: torch.Tensor
    mask_QL: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Decode groups and prefill chunks of a step."""

    groups: list[DecodeGroup]
    prefills: list[Prefill]


class TorchAttention:
    """Gather by (block, head), then matrix products."""

    reads_unwritten_slots = True

    def __init__(self, dtype: torch.dtype, *, masks_prefills: bool = True) -> None:
        self._dtype, self._masks_prefills = dtype, masks_prefills

    def plan(self, batch: AttentionBatch) -> Plan:
        order = sorted(range(batch.num_decodes), key=lambda i: batch.context_lens[i])
        groups = []
        while order:
            longest = max(2 * batch.context_lens[order[0]], 4 * batch.block_size)
            members = [i for i in order if batch.context_lens[i] <= longest]
            order = order[len(members) :]
            groups.append(self._decode_group(batch, members))
        prefills, first = [], batch.num_decodes
        for i in range(batch.num_decodes, len(batch.query_lens)):
            prefills.append(_prefill(batch, i, first, masked=self._masks_prefills))
            first += batch.query_lens[i]
        return Plan(groups, prefills)

    def forward(self, q_TND: torch.Tensor, k_cache: Cache, v_cache: Cache, plan: Plan, scale: float) -> torch.Tensor:
        out_TND = torch.empty_like(q_TND)
        for group in plan.groups:
            q_GND = q_TND.index_select(0, group.rows_G)
            out_TND.index_copy_(0, group.rows_G, _attend_decodes(q_GND, k_cache, v_cache, group, scale))
        for prefill in plan.prefills:
            q_QND = q_TND[prefill.first : prefill.last]
            out_TND[prefill.first : prefill.last] = _attend_prefill(q_QND, k_cache, v_cache, prefill, scale)
        return out_TND

    def _decode_group(self, batch: AttentionBatch, members: list[int]) -> DecodeGroup:
        num_blocks = max(len(_blocks(batch, i)) for i in members)
        # Padding repeats the sequence's first block: valid memory, and always masked.
        tables = [table + table[:1] * (num_blocks - len(table)) for table in (_blocks(batch, i) for i in members)]
        lens = torch.tensor([batch.context_lens[i] for i in members], device=batch.device)
        hidden = torch.arange(num_blocks * batch.block_size, device=batch.device) >= lens[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=batch.device).masked_fill_(hidden, float("-inf"))
        return DecodeGroup(
            rows_G=torch.tensor(members, device=batch.device),
            block_ids_G1B=torch.tensor(tables, device=batch.device)[:, None],
            mask_G11L=mask[:, None, None],
        )


def _attend_decodes(
    q_GND: torch.Tensor, k_cache: Cache, v_cache: Cache, group: DecodeGroup, scale: float
) -> torch.Tensor:
    num_seqs, num_kv_heads, head_dim = len(q_GND), values_of(k_cache).shape[1], q_GND.shape[2]
    heads_K1 = torch.arange(num_kv_heads, device=q_GND.device)[:, None]
    panels = (group.block_ids_G1B * num_kv_heads + heads_K1).flatten()  # (block, head) pairs, head-major per sequence
    keys, values = (
        take(_by_head(cache), panels, q_GND.dtype).view(num_seqs * num_kv_heads, -1, head_dim)
        for cache in (k_cache, v_cache)
    )
    scores = torch.bmm(q_GND.view(num_seqs * num_kv_heads, -1, head_dim), keys.transpose(1, 2))
    scores_GKRL = scores.view(num_seqs, num_kv_heads, -1, keys.shape[1]).mul_(scale).add_(group.mask_G11L)
    return torch.bmm(scores_GKRL.softmax(-1).view_as(scores), values).view_as(q_GND)


def _by_head(cache: Cache) -> Cache:
    """The cache with blocks and heads flattened into one dimension."""
    return Int8Cache(*(x.flatten(0, 1) for x in cache)) if isinstance(cache, Int8Cache) else cache.flatten(0, 1)


def _attend_prefill(
    q_QND: torch.Tensor, k_cache: Cache, v_cache: Cache, prefill: Prefill, scale: float
) -> torch.Tensor:
    keys_KLD, values_KLD = (
        take(cache, prefill.block_ids, q_QND.dtype).transpose(0, 1).flatten(1, 2)[:, : prefill.context_len]
        for cache in (k_cache, v_cache)
    )
    o_1NQD = F.scaled_dot_product_attention(
        q_QND.transpose(0, 1)[None],
        keys_KLD[None],
        values_KLD[None],
        attn_mask=prefill.mask_QL,
        is_causal=prefill.mask_QL is None,
        scale=scale,
        enable_gqa=keys_KLD.shape[0] != q_QND.shape[1],
    )
    return o_1NQD[0].transpose(0, 1)


def _prefill(batch: AttentionBatch, i: int, first: int, *, masked: bool) -> Prefill:
    query_len, context_len = batch.query_lens[i], batch.context_lens[i]
    mask_QL = None
    if masked and query_len < context_len:
        mask_QL = torch.ones(query_len, context_len, dtype=torch.bool, device=batch.device)
        mask_QL = mask_QL.tril_(context_len - query_len)
    block_ids = torch.tensor(_blocks(batch, i), device=batch.device)
    return Prefill(first, first + query_len, context_len, block_ids, mask_QL)


def _blocks(batch: AttentionBatch, i: int) -> list[int]:
    return batch.block_tables[i][: -(-batch.context_lens[i] // batch.block_size)]

"""Attention through torch's own operators, on any device. Contract: kernels.paged_attention.

Decoding sequences are sorted by context length into groups; the longest of a group is at most twice as long as the
shortest. The blocks of a group are gathered into one padded batch and multiplied as batched matrices. The query heads
that share a key head are rows of one matrix, so keys are not repeated. Prefill chunks are computed one by one with
scaled_dot_product_attention. Both read a context from the first block on that a query sees.

Shapes: G sequences of a group, K key heads, R query heads for each key head, L padded context, D head dimension, Q
queries of a chunk.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from kernels.attention_pattern import FULL, AttentionPattern
from kernels.kv_cache import Cache, by_head, take, values_of
from kernels.paged_attention.batch import AttentionBatch
from kernels.paged_attention.virtual_sequences import under_pattern

_MIN_CUT = 128  # queries


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
    """A prefill chunk: rows `first` to `last` of the packed batch over `context_len` positions.

    Attributes:
        mask_QL: the positions that each query sees. None where is_causal suffices (the chunk is all that it reads), and
            for latent attention, which does not use it.
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

    def plan(self, batch: AttentionBatch, pattern: AttentionPattern = FULL) -> Plan:
        batch = _cut_by_window(under_pattern(batch, pattern))
        num_read = [batch.num_read(i) for i in range(batch.num_decodes)]
        order = sorted(range(batch.num_decodes), key=lambda i: num_read[i])
        groups = []
        while order:
            longest = max(2 * num_read[order[0]], 4 * batch.block_size)
            members = [i for i in order if num_read[i] <= longest]
            order = order[len(members) :]
            groups.append(self._decode_group(batch, members))
        return Plan(groups, plan_prefills(batch, masked=self._masks_prefills))

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
        tables = [batch.read_blocks(i) for i in members]
        num_blocks = max(map(len, tables))
        # Padding repeats the sequence's first block: valid memory, and always masked.
        tables = [table + table[:1] * (num_blocks - len(table)) for table in tables]
        ends_G1 = torch.tensor([[batch.num_read(i)] for i in members], device=batch.device)
        read_L = torch.arange(num_blocks * batch.block_size, device=batch.device)
        hidden_GL = read_L >= ends_G1
        if batch.window is not None:
            hidden_GL |= read_L < ends_G1 - batch.window
        mask = torch.zeros(hidden_GL.shape, dtype=self._dtype, device=batch.device)
        mask.masked_fill_(hidden_GL, float("-inf"))
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
        take(by_head(cache), panels, q_GND.dtype).view(num_seqs * num_kv_heads, -1, head_dim)
        for cache in (k_cache, v_cache)
    )
    scores = torch.bmm(q_GND.view(num_seqs * num_kv_heads, -1, head_dim), keys.transpose(1, 2))
    scores_GKRL = scores.view(num_seqs, num_kv_heads, -1, keys.shape[1]).mul_(scale).add_(group.mask_G11L)
    return torch.bmm(scores_GKRL.softmax(-1).view_as(scores), values).view_as(q_GND)


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


def plan_prefills(batch: AttentionBatch, *, masked: bool) -> list[Prefill]:
    """The chunks behind the decoding sequences."""
    prefills, first = [], batch.num_decodes
    for i in range(batch.num_decodes, len(batch.query_lens)):
        prefills.append(_prefill(batch, i, first, masked=masked))
        first += batch.query_lens[i]
    return prefills


def _cut_by_window(batch: AttentionBatch) -> AttentionBatch:
    """Long chunks as several shorter ones, each of which reads its own windows and not all that the chunk reads."""
    if batch.window is None:
        return batch
    size = max(batch.window, _MIN_CUT)
    cuts = [
        (i, end - start, end)
        for i, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True))
        for start in range(context_len - query_len, context_len, size)
        for end in (min(start + size, context_len),)
    ]
    members = batch.only([i for i, _, _ in cuts])
    return replace(members, query_lens=[n for _, n, _ in cuts], context_lens=[end for _, _, end in cuts])


def _prefill(batch: AttentionBatch, i: int, first: int, *, masked: bool) -> Prefill:
    query_len, num_read = batch.query_lens[i], batch.num_read(i)
    mask_QL = None
    if masked and (query_len < num_read or batch.window is not None):
        mask_QL = torch.ones(query_len, num_read, dtype=torch.bool, device=batch.device)
        mask_QL = mask_QL.tril_(num_read - query_len)
        if batch.window is not None:
            mask_QL = mask_QL.triu_(num_read - query_len - batch.window + 1)
    block_ids = torch.tensor(batch.read_blocks(i), device=batch.device)
    return Prefill(first, first + query_len, num_read, block_ids, mask_QL)

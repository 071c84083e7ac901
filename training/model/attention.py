"""Grouped-query attention of one layer, by its pattern, never with a tensor of T x T values.

Full attention is torch's causal flash attention, whose memory grows with T, on CPUs too. Local and block-sparse
attention gather the keys that a block of queries sees (training.model.visible_blocks): O(T) in time and memory. In bf16
on CPUs, matrix products take flash attention's place (training.model.causal_attention). FlexAttention has no backward
pass on CPUs (torch 2.13). Padding is on the right, so that causality hides it.

Shapes: B rows, T padded tokens, H hidden, Q query heads, K key heads, G = Q / K, D values of a head; n, S, V as in
training.model.visible_blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from training.model.attention_dropout import attend_with_dropout
from training.model.causal_attention import causal_attention
from training.model.rotary import rotate
from training.model.visible_blocks import BlockPlan, block_plan

if TYPE_CHECKING:
    from engine.models.config import ModelConfig
    from training.model.rotary import RotaryTables


class Attention(nn.Module):
    """Projections, rotation and attention. Each rank of a tensor-parallel model has some of the heads."""

    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        hidden, self._head_dim = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, hidden, bias=False)
        self._pattern, self._dropout = config.attention_patterns[layer], dropout

    def forward(self, x_BTH: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
        shape = (*x_BTH.shape[:2], -1, self._head_dim)
        q_BTQD = rotate(self.q_proj(x_BTH).view(shape), tables)
        k_BTKD = rotate(self.k_proj(x_BTH).view(shape), tables)
        v_BTKD = self.v_proj(x_BTH).view(shape)
        if self._dropout and self.training:
            out_BTQD = attend_with_dropout(q_BTQD, k_BTKD, v_BTKD, self._pattern, self._dropout)
        elif (plan := block_plan(self._pattern, x_BTH.shape[1])) is None:
            out_BTQD = attend_to_all(q_BTQD, k_BTKD, v_BTKD)
        else:
            out_BTQD = attend_to_blocks(q_BTQD, k_BTKD, v_BTKD, plan)
        y_BTH: torch.Tensor = self.o_proj(out_BTQD.flatten(2))
        return y_BTH


def attend_to_all(q_BTQD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKD: torch.Tensor) -> torch.Tensor:
    """[B, T, Q, D]: each query sees all positions up to its own."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTQD, k_BTKD, v_BTKD))
    if _prefers_products(q):
        rows, num_kv_heads, num_tokens, dim = k.shape
        k, v = (x.reshape(-1, num_tokens, dim) for x in (k, v))
        out = causal_attention(q.reshape(rows * num_kv_heads, -1, num_tokens, dim), k, v)
        return out.view(q.shape).transpose(1, 2)
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped).transpose(1, 2)


def attend_to_blocks(q_BTQD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKD: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
    """[B, T, Q, D]: each query sees the positions of its block's visible blocks, up to its own.

    Blocks of queries take the place of heads in SDPA, and queries that share a key head are rows of one block.
    """
    rows, num_tokens, num_heads, dim = q_BTQD.shape
    num_kv_heads, n, size = k_BTKD.shape[2], len(plan.visible_nV), plan.size
    group = num_heads // num_kv_heads
    padding = (0, 0, 0, 0, 0, plan.num_positions - num_tokens)
    q_BTQD, k_BTKD, v_BTKD = (F.pad(x, padding) if padding[-1] else x for x in (q_BTQD, k_BTKD, v_BTKD))
    q = q_BTQD.reshape(rows, n, size, num_kv_heads, group, dim).permute(0, 3, 1, 4, 2, 5)
    q = q.reshape(rows * num_kv_heads, n, group * size, dim)
    k, v = (_gather(x, plan) for x in (k_BTKD, v_BTKD))
    mask = plan.mask(q.dtype, group).to(q.device)
    if _prefers_products(q):
        scores: torch.Tensor = (q * dim**-0.5) @ k.mT
        out = scores.add_(mask).softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])
    out = out.view(rows, num_kv_heads, n, group, size, dim).permute(0, 2, 4, 1, 3, 5)
    return out.reshape(rows, n * size, num_heads, dim)[:, :num_tokens]


def _prefers_products(q: torch.Tensor) -> bool:
    """Whether plain matrix products are faster than SDPA (training.model.causal_attention)."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16


def _gather(x_BTKD: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
    """The visible positions of each block of queries, [B * K, n, V * S, D]."""
    rows, _, num_heads, dim = x_BTKD.shape
    n, visible = plan.visible_nV.shape
    blocks = x_BTKD.transpose(1, 2).reshape(rows * num_heads, n, plan.size * dim)
    gathered = blocks.index_select(1, plan.key_blocks().to(x_BTKD.device))
    return gathered.view(rows * num_heads, n, visible * plan.size, dim)

"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), with the names of its modeling code.

The maths, for a token's hidden state x (no biases):

    q        = q_b(norm(q_a(x)))            or q_proj(x) without q_lora_rank;  per head [q_nope | q_rope]
    [c | k]  = kv_a_proj_with_mqa(x)        c the latent, k the rotary key that all heads share
    cached   = [norm(c) | rope(k)]          and nothing else: C + R values a token and layer
    k_nope, v = kv_b(norm(c))               per head; never formed here, see below
    score    = (q_nope . k_nope + rope(q_rope) . rope(k)) * scale

kv_b is absorbed: with W_UK and W_UV its key and value rows of a head, q_nope . (W_UK c) = (W_UK^T q_nope) . c, so a
head asks the latents directly with W_UK^T q_nope, gets a mix of latents back, and makes its value of that once:
o = W_UV (sum p c).

DeepSeek's RoPE pairs neighbouring dimensions. kernels.rotary pairs halves; permuting the rows that make the rotary
dimensions, for queries and keys alike, turns one into the other and leaves every product as it was.

Shapes: T tokens, H hidden, N heads, Q q_lora_rank, C kv_lora_rank, D qk_nope_head_dim, R qk_rope_head_dim, V
v_head_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from engine.models.indexer import Indexer

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.models.config import ModelConfig
    from engine.models.decoder import ModelBatch
    from engine.models.layers import Builder

_NORM_EPS = 1e-6  # of q_a_layernorm and kv_a_layernorm, whatever rms_norm_eps says (DeepSeek's code, and transformers')


class MultiHeadLatentAttention:
    """MLA over a cache of latents; with an indexer (V3.2), over the positions that it selects."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config, mla = build.config, build.config.mla
        assert mla is not None
        self._mla, self._kernels, self._num_heads = mla, build.kernels, config.num_attention_heads
        self._scale = softmax_scale(config)
        head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        # x feeds two products, made one: the compressed query (or the query itself) and the latent with its rotary key.
        first = "q_proj" if mla.q_lora_rank is None else "q_a_proj"
        self._q_size = mla.q_lora_rank or self._num_heads * head_dim
        latent_rows = _half_split_rows(1, mla.kv_lora_rank, mla.qk_rope_head_dim)
        query_rows = _half_split_rows(self._num_heads, mla.qk_nope_head_dim, mla.qk_rope_head_dim)
        weight, bias = build.stacked(
            f"{prefix}.{first}",
            f"{prefix}.kv_a_proj_with_mqa",
            in_size=config.hidden_size,
            out_sizes=[self._q_size, mla.kv_lora_rank + mla.qk_rope_head_dim],
            bias=config.attention_bias,
        )
        rows = torch.arange(self._q_size) if mla.q_lora_rank else query_rows
        rows = torch.cat([rows, self._q_size + latent_rows])
        self._down = build.kernels.linear(weight[rows], None if bias is None else bias[rows])
        self._latent_norm = build.weights.take(f"{prefix}.kv_a_layernorm.weight", (mla.kv_lora_rank,))
        self._q_up: Callable[[torch.Tensor], torch.Tensor] | None = None
        if mla.q_lora_rank is not None:
            self._q_norm = build.weights.take(f"{prefix}.q_a_layernorm.weight", (mla.q_lora_rank,))
            q_b = build.weights.take(f"{prefix}.q_b_proj.weight", (self._num_heads * head_dim, mla.q_lora_rank))
            self._q_up = build.kernels.linear(q_b[query_rows], None)
        kv_size = mla.qk_nope_head_dim + mla.v_head_dim
        kv_b = build.weights.take(f"{prefix}.kv_b_proj.weight", (self._num_heads * kv_size, mla.kv_lora_rank))
        up_NXC = kv_b.view(self._num_heads, kv_size, mla.kv_lora_rank)
        self._key_up_NDC = up_NXC[:, : mla.qk_nope_head_dim].contiguous()
        self._value_up_NCV = up_NXC[:, mla.qk_nope_head_dim :].transpose(1, 2).contiguous()
        self._out = build.linear(
            f"{prefix}.o_proj",
            in_size=self._num_heads * mla.v_head_dim,
            out_sizes=[config.hidden_size],
            bias=config.attention_bias,
        )
        self._indexer = Indexer(build, f"{prefix}.indexer") if config.indexer is not None else None

    @staticmethod
    def cache_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
        """What is cached for one token and layer: the latent with its rotary key, and the indexer's key if any."""
        assert config.mla is not None
        latent = (1, config.mla.kv_lora_rank + config.mla.qk_rope_head_dim)
        return (latent,) if config.indexer is None else (latent, (1, config.indexer.index_head_dim))

    def forward(self, x_TH: torch.Tensor, batch: ModelBatch, cache: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """[T, H] -> [T, H]; fills `cache`: (latents,) or (latents, index keys), each [blocks, 1, slots, values]."""
        mla, kernels = self._mla, self._kernels
        down = self._down(x_TH)
        q_TQ, latent_TC, k_rope_TR = down.split([self._q_size, mla.kv_lora_rank, mla.qk_rope_head_dim], dim=1)
        if self._q_up is not None:
            q_TQ = kernels.rms_norm(q_TQ, self._q_norm, _NORM_EPS)
        q = q_TQ if self._q_up is None else self._q_up(q_TQ)
        q_nope_TND, q_rope_TNR = q.view(len(x_TH), self._num_heads, -1).split(
            [mla.qk_nope_head_dim, mla.qk_rope_head_dim], dim=2
        )
        latent_TC = kernels.rms_norm(latent_TC, self._latent_norm, _NORM_EPS)
        k_rope_T1R = kernels.rotary(k_rope_TR[:, None], batch.cos_TD, batch.sin_TD)
        kernels.store_kv(torch.cat([latent_TC[:, None], k_rope_T1R], dim=2), cache[0], batch.blocks_T, batch.offsets_T)
        selection = None
        if self._indexer is not None:
            selection = self._indexer.forward(x_TH, q_TQ, batch, cache[1])

        q_rope_TNR = kernels.rotary(q_rope_TNR, batch.cos_TD, batch.sin_TD)
        q_latent_TNC = torch.bmm(q_nope_TND.transpose(0, 1), self._key_up_NDC).transpose(0, 1)
        q_TNX = torch.cat([q_latent_TNC, q_rope_TNR], dim=2)
        o_TNC = kernels.latent_attention.forward(
            q_TNX, cache[0], batch.attention_plan, self._scale, mla.kv_lora_rank, selection
        )
        o_NTV = torch.bmm(o_TNC.transpose(0, 1), self._value_up_NCV)
        return self._out(o_NTV.transpose(0, 1).reshape(len(x_TH), -1))


def softmax_scale(config: ModelConfig) -> float:
    """1 / sqrt(query dimensions of a head), times YaRN's mscale squared where the checkpoint scales all dimensions."""
    assert config.mla is not None
    scale = 1.0 / math.sqrt(config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim)
    all_dim, factor = (float(config.rope_scaling.get(key) or 0) for key in ("mscale_all_dim", "factor"))
    if not all_dim or factor <= 1:
        return scale
    return scale * math.pow(0.1 * all_dim * math.log(factor) + 1.0, 2)


def _half_split_rows(num_heads: int, plain: int, rotary: int) -> torch.Tensor:
    """An order of the rows of heads, each [plain | rotary], with the rotary ones' even rows before the odd."""
    head = torch.cat([torch.arange(plain), plain + torch.arange(0, rotary, 2), plain + torch.arange(1, rotary, 2)])
    return (torch.arange(num_heads)[:, None] * (plain + rotary) + head).flatten()

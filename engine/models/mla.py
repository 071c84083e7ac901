"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), with the names of its modeling code.

The maths, for a token's hidden state x (no biases):

    q        = q_b(norm(q_a(x)))            or q_proj(x) without q_lora_rank;  per head [q_nope | q_rope]
    [c | k]  = kv_a_proj_with_mqa(x)        c the latent, k the rotary key that all heads share
    cached   = [norm(c) | rope(k)]          nothing else: C + R values for a token in a layer
    k_nope, v = kv_b(norm(c))               per head, W_UK c and W_UV c, with the key and value rows of kv_b
    score    = (q_nope . k_nope + rope(q_rope) . rope(k)) * scale
    o        = sum of softmax(score) * v over the positions up to the token's own

Two forms give the same result up to rounding; engine.models.mla_plan chooses one for each sequence of a step:

    absorbed   q_nope . (W_UK c) = (W_UK^T q_nope) . c and sum p (W_UV c) = W_UV (sum p c): attention runs over the
               latents, and no keys or values are computed.
    expanded   keys and values are computed from the cached latents, then attention runs over them.

DeepSeek's RoPE pairs neighbouring dimensions, and kernels.rotary pairs halves. The rows of the projections that give
rotary dimensions are permuted at load, for queries and keys alike, so every score stays the same.

Shapes: T tokens, H hidden, N heads (G of them at a time), Q q_lora_rank or the queries of a chunk, L its positions, C
kv_lora_rank, D qk_nope_head_dim, R qk_rope_head_dim, V v_head_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import ConfigError
from engine.models.indexer import Indexer
from engine.models.mla_plan import MLAPlan, make_plan
from kernels.attention_pattern import FULL
from kernels.kv_cache import take
from kernels.packed_rows import PackedRow

if TYPE_CHECKING:
    from engine.model_batch import AttentionView, ModelBatch
    from engine.models.config import ModelConfig
    from engine.models.layers import Builder
    from kernels.attention_pattern import AttentionPattern
    from kernels.kv_cache import Cache
    from kernels.ops import Ops
    from kernels.paged_attention import AttentionBatch
    from kernels.types import Linear, Weight

_NORM_EPS = 1e-6  # q_a_layernorm and kv_a_layernorm ignore rms_norm_eps (DeepSeek's code and transformers)
_MAX_EXPANDED_VALUES = 1 << 25  # size of the expanded keys and values in memory


class MultiHeadLatentAttention:
    """MLA over cached latents; with an indexer (V3.2), over the positions that the indexer selects."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config, mla = build.config, build.config.mla
        assert mla is not None
        self._mla, self._ops, self._num_heads = mla, build.ops, config.num_attention_heads
        self._scale = softmax_scale(config)
        head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        # Two projections of x are one product: the (compressed) query, and the latent with its rotary key.
        first = "q_proj" if mla.q_lora_rank is None else "q_a_proj"
        self._q_size = mla.q_lora_rank or self._num_heads * head_dim
        stride = 2 if mla.rope_interleave else 1
        latent_rows = _half_split_rows(1, mla.kv_lora_rank, mla.qk_rope_head_dim, stride)
        query_rows = _half_split_rows(self._num_heads, mla.qk_nope_head_dim, mla.qk_rope_head_dim, stride)
        latent_size = mla.kv_lora_rank + mla.qk_rope_head_dim
        sizes = {f"{prefix}.{first}": self._q_size, f"{prefix}.kv_a_proj_with_mqa": latent_size}
        weight, bias = build.stacked(sizes, config.hidden_size, bias=config.attention_bias)
        rows = torch.arange(self._q_size) if mla.q_lora_rank else query_rows
        rows = torch.cat([rows, self._q_size + latent_rows])
        self._down = build.ops.projection(_rows(weight, rows), None if bias is None else bias[rows])
        self._latent_norm = build.weights.take(f"{prefix}.kv_a_layernorm.weight", (mla.kv_lora_rank,))
        self._q_up: Linear | None = None
        if mla.q_lora_rank is not None:
            self._q_norm = build.weights.take(f"{prefix}.q_a_layernorm.weight", (mla.q_lora_rank,))
            q_b = build.weights.take_linear(f"{prefix}.q_b_proj", (self._num_heads * head_dim, mla.q_lora_rank))
            self._q_up = build.ops.projection(_rows(q_b, query_rows), None)
        kv_size = mla.qk_nope_head_dim + mla.v_head_dim
        kv_b = build.weights.take(f"{prefix}.kv_b_proj.weight", (self._num_heads * kv_size, mla.kv_lora_rank))
        up_NXC = kv_b.view(self._num_heads, kv_size, mla.kv_lora_rank)
        key_up_NDC, value_up_NVC = up_NXC.split([mla.qk_nope_head_dim, mla.v_head_dim], dim=1)
        self._absorb_keys = build.ops.head_linear(key_up_NDC)
        self._expand_keys = build.ops.head_linear(key_up_NDC.transpose(1, 2))
        self._value_up = build.ops.head_linear(value_up_NVC.transpose(1, 2))  # after or before attention
        out = {f"{prefix}.o_proj": config.hidden_size}
        self._out = build.linear(out, self._num_heads * mla.v_head_dim, bias=config.attention_bias)
        self._indexer = Indexer(build, f"{prefix}.indexer") if config.indexer is not None else None

    @staticmethod
    def cache_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
        """Shapes cached for one token in one layer: the latent with its rotary key, and the indexer's key if any."""
        assert config.mla is not None
        latent = (1, config.mla.kv_lora_rank + config.mla.qk_rope_head_dim)
        return (latent,) if config.indexer is None else (latent, (1, config.indexer.index_head_dim))

    @staticmethod
    def cache_scales(config: ModelConfig) -> tuple[int, ...]:
        """Number of scales of each for a token, if cached as int8: one of the latent, one of its rotary key."""
        assert config.indexer is None, "the engine refuses an int8 cache for a model with an indexer"
        return (2,)

    @staticmethod
    def packed_rows(config: ModelConfig) -> tuple[PackedRow, ...]:
        """What a token leaves, if cached in 4 bits: its latent, beside its rotary key in int8.

        Raises:
            ConfigError: latents have a size for which there are no such rows.
        """
        assert config.mla is not None
        assert config.indexer is None, "the engine refuses a cache in 4 bits for a model with an indexer"
        if config.mla.kv_lora_rank % 32:
            raise ConfigError(
                f"--kv-cache-dtype is int4; the model's latents have {config.mla.kv_lora_rank} values, and a multiple "
                "of 32 is needed: valid are auto, int8"
            )
        return (PackedRow(config.mla.kv_lora_rank, 4, config.mla.qk_rope_head_dim),)

    @staticmethod
    def plan(config: ModelConfig, ops: Ops, batch: AttentionBatch, pattern: AttentionPattern) -> MLAPlan:
        """The plan that the layers of a view share in a step."""
        assert pattern == FULL, "no model has latent attention of another pattern"
        return make_plan(config, ops, batch)

    def forward(
        self,
        x_TH: torch.Tensor,
        batch: ModelBatch,
        view: AttentionView,
        cache: tuple[Cache, ...],
        rows_R: torch.Tensor | None,
    ) -> torch.Tensor:
        """[T, H] -> [R, H]: store the latents of all T tokens, return the output of the R wanted rows (None: all).

        `cache` is (latents,) or (latents, index keys), each [blocks, 1, slots, values].
        """
        o_TX = self._attend(x_TH, batch, view, cache).reshape(x_TH.shape[0], -1)
        return self._out(o_TX if rows_R is None else self._ops.take_rows(o_TX, rows_R))

    def _attend(
        self, x_TH: torch.Tensor, batch: ModelBatch, view: AttentionView, cache: tuple[Cache, ...]
    ) -> torch.Tensor:
        """[T, H] -> [T, N, V]."""
        mla, ops = self._mla, self._ops
        down = self._down(x_TH)
        q_TQ, latent_TX = down.split([self._q_size, mla.kv_lora_rank + mla.qk_rope_head_dim], dim=1)
        if self._q_up is not None:
            q_TQ = ops.rms_norm(q_TQ, self._q_norm, _NORM_EPS)
        q_TNX = (q_TQ if self._q_up is None else self._q_up(q_TQ)).view(x_TH.shape[0], self._num_heads, -1)
        q_nope_TND, q_rope_TNR = q_TNX.split([mla.qk_nope_head_dim, mla.qk_rope_head_dim], dim=2)
        rotation = batch.cos_TD, batch.sin_TD
        ops.store_latents(latent_TX, self._latent_norm, _NORM_EPS, *rotation, cache[0], view.slot_mapping_T)
        selection = None
        if self._indexer is not None:
            assert isinstance(cache[1], torch.Tensor)
            selection = self._indexer.forward(x_TH, q_TQ, batch, view, cache[1])

        plan: MLAPlan = view.plan
        if not plan.expanded:
            return self._attend_absorbed(q_nope_TND, q_rope_TNR, rotation, cache[0], plan.absorbed, selection)
        return self._attend_in_both_forms(q_nope_TND, q_rope_TNR, rotation, cache[0], plan)

    def _attend_in_both_forms(
        self,
        q_nope_TND: torch.Tensor,
        q_rope_TNR: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        cache: Cache,
        plan: MLAPlan,
    ) -> torch.Tensor:
        """[T, N, V] of a step that has sequences in the expanded form; the others are absorbed."""
        mla, (cos_TD, sin_TD) = self._mla, rotation
        o_TNV = q_nope_TND.new_empty(len(q_nope_TND), self._num_heads, mla.v_head_dim)
        if (rows := plan.absorbed_rows) is not None:
            q, rotation_of_rows = (q_nope_TND[rows], q_rope_TNR[rows]), (cos_TD[rows], sin_TD[rows])
            o_TNV[rows] = self._attend_absorbed(*q, rotation_of_rows, cache, plan.absorbed, None)
        q_rope_TNR = self._ops.rotary(q_rope_TNR, *rotation)
        for chunk in plan.expanded:
            rows_of = slice(chunk.first, chunk.last)
            q_QNX = torch.cat([q_nope_TND[rows_of], q_rope_TNR[rows_of]], 2)
            latents_BX = take(cache, chunk.block_ids, q_QNX.dtype, first=mla.kv_lora_rank)
            latents_LX = latents_BX.view(-1, mla.kv_lora_rank + mla.qk_rope_head_dim)
            o_TNV[rows_of] = self._attend_expanded(q_QNX, latents_LX[: chunk.context_len])
        return o_TNV

    def _attend_absorbed(
        self,
        q_nope_TND: torch.Tensor,
        q_rope_TNR: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        cache: Cache,
        plan: Any,
        selection: Any,
    ) -> torch.Tensor:
        """[T, N, V]; q_rope_TNR is not rotated yet, `rotation` holds its cosines and sines."""
        mla, ops = self._mla, self._ops
        num_tokens, num_heads, _ = q_nope_TND.shape
        q_TNX = q_nope_TND.new_empty(num_tokens, num_heads, mla.kv_lora_rank + mla.qk_rope_head_dim)
        self._absorb_keys(q_nope_TND, q_TNX[..., : mla.kv_lora_rank])
        ops.rotary(q_rope_TNR, *rotation, q_TNX[..., mla.kv_lora_rank :])
        kernel = ops.latent_attention if self._indexer is None else ops.sparse_latent_attention
        o_TNC = kernel.forward(q_TNX, cache, plan, self._scale, mla.kv_lora_rank, selection)
        o_TNV = q_nope_TND.new_empty(num_tokens, num_heads, mla.v_head_dim)
        self._value_up(o_TNC, o_TNV)
        return o_TNV

    def _attend_expanded(self, q_QNX: torch.Tensor, latents_LX: torch.Tensor) -> torch.Tensor:
        """[Q, N, V]: the last Q of L positions attend to all L; computed for a few heads at a time, to bound memory."""
        mla, (num_queries, num_heads, key_dim), context_len = self._mla, q_QNX.shape, len(latents_LX)
        o_QNV = q_QNX.new_empty(num_queries, num_heads, mla.v_head_dim)
        step = max(1, min(num_heads, _MAX_EXPANDED_VALUES // (context_len * (key_dim + mla.v_head_dim))))
        k_LGX = q_QNX.new_empty(context_len, step, key_dim)
        k_LGX[..., mla.qk_nope_head_dim :] = latents_LX[:, None, mla.kv_lora_rank :]
        v_LGV = q_QNX.new_empty(context_len, step, mla.v_head_dim)
        for first in range(0, num_heads, step):
            heads = slice(first, min(first + step, num_heads))
            group = slice(heads.stop - first)
            latents_LGC = latents_LX[:, None, : mla.kv_lora_rank].expand(-1, group.stop, -1)
            self._expand_keys(latents_LGC, k_LGX[:, group, : mla.qk_nope_head_dim], first)
            self._value_up(latents_LGC, v_LGV[:, group], first)
            o_QNV[:, heads] = self._ops.causal_attention(q_QNX[:, heads], k_LGX[:, group], v_LGV[:, group], self._scale)
        return o_QNV


def softmax_scale(config: ModelConfig) -> float:
    """1 / sqrt(query dimensions of a head), times YaRN's mscale squared if mscale_all_dim is set."""
    assert config.mla is not None
    scale = 1.0 / math.sqrt(config.mla.qk_nope_head_dim + config.mla.qk_rope_head_dim)
    all_dim, factor = (float(config.rope_scaling.get(key) or 0) for key in ("mscale_all_dim", "factor"))
    if not all_dim or factor <= 1:
        return scale
    return scale * math.pow(0.1 * all_dim * math.log(factor) + 1.0, 2)


def _rows(weight: Weight, order: torch.Tensor) -> Weight:
    return weight[order] if isinstance(weight, torch.Tensor) else weight.rows(order)


def _half_split_rows(num_heads: int, plain: int, rotary: int, stride: int) -> torch.Tensor:
    """Row order of heads [plain | rotary] that puts the even rotary rows of each head before the odd ones (stride 2).

    A checkpoint whose RoPE pairs halves already (rope_interleave: false) needs no other order (stride 1).
    """
    halves = torch.arange(rotary).view(-1, stride).T.flatten()
    head = torch.cat([torch.arange(plain), plain + halves])
    return (torch.arange(num_heads)[:, None] * (plain + rotary) + head).flatten()

"""Grouped-query attention, as in Llama (Ainslie et al. 2023); multi-head attention if N = K.

Shapes: T tokens of the step, H hidden, N query heads, K key heads, D head_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from kernels.packed_rows import PackedRow

if TYPE_CHECKING:
    import torch

    from engine.model_batch import AttentionView, ModelBatch
    from engine.models.config import ModelConfig
    from engine.models.layers import Builder
    from kernels.attention_pattern import AttentionPattern
    from kernels.kv_cache import Cache
    from kernels.ops import Ops
    from kernels.paged_attention import AttentionBatch


class GroupedQueryAttention:
    """One product for q, k and v; rotates queries and keys, stores keys and values, attends over the paged cache."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config = build.config
        self._ops = build.ops
        self._head_dim = config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        sizes = {f"{prefix}.q_proj": q_size, f"{prefix}.k_proj": kv_size, f"{prefix}.v_proj": kv_size}
        self._qkv = build.linear(sizes, config.hidden_size, bias=config.attention_bias)
        self._out = build.linear({f"{prefix}.o_proj": config.hidden_size}, q_size, bias=config.attention_bias)

    @staticmethod
    def cache_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
        """Shapes cached for one token in one layer: keys and values, each [K, D]."""
        shape = (config.num_key_value_heads, config.head_dim)
        return shape, shape

    @staticmethod
    def cache_scales(_: ModelConfig) -> tuple[int, ...]:
        """Number of scales of each for a token and head, if cached as int8."""
        return 1, 1

    @staticmethod
    def packed_rows(config: ModelConfig) -> tuple[PackedRow, ...]:
        """What a token and head leave, if cached in 4 bits.

        Raises:
            ConfigError: heads have a size for which there are no such rows.
        """
        if config.head_dim % 16:
            raise ConfigError(
                f"--kv-cache-dtype is int4; the model's heads have {config.head_dim} values, and a multiple of 16 is "
                "needed: valid are auto, int8"
            )
        return PackedRow(config.head_dim, 5), PackedRow(config.head_dim, 4)

    @staticmethod
    def plan(_: ModelConfig, ops: Ops, batch: AttentionBatch, pattern: AttentionPattern) -> Any:
        """The plan that the layers of a view share in a step."""
        return ops.paged_attention.plan(batch, pattern)

    def forward(
        self,
        x_TH: torch.Tensor,
        batch: ModelBatch,
        view: AttentionView,
        cache: tuple[Cache, ...],
        rows_R: torch.Tensor | None,
    ) -> torch.Tensor:
        """[T, H] -> [R, H]: store keys and values of all T tokens, return the output of the R wanted rows (None: all).

        `cache` is (keys, values), each [blocks, K, slots, D].
        """
        k_cache, v_cache = cache
        qkv = self._qkv(x_TH).view(x_TH.shape[0], -1, self._head_dim)
        q_TND = self._ops.rotate_and_store(qkv, batch.cos_TD, batch.sin_TD, k_cache, v_cache, view.slot_mapping_T)
        o_TND = self._ops.paged_attention.forward(q_TND, k_cache, v_cache, view.plan, self._head_dim**-0.5)
        o_TX = o_TND.reshape(x_TH.shape[0], -1)
        return self._out(o_TX if rows_R is None else self._ops.take_rows(o_TX, rows_R))

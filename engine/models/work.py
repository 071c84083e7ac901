"""What a step must compute and read at least, from the model's shape: what measured times are held against.

Counted are products of matrices and of attention, weights that are read once however many tokens share them, and cached
entries of the contexts. Not counted: norms, activations, the sampler, and what a kernel reads twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Work:
    """Of one step: 2 flops for a multiplication with its addition; bytes that are read."""

    flops: float
    bytes: float


def step_work(
    config: ModelConfig,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    num_logits: int,
    *,
    weight_size: float,
    entry_size: float,
) -> Work:
    """The work of a step; an expert's weights are read as often as some token is likely to choose it.

    Args:
        config: the model's shape.
        query_lens: tokens that are computed, of each sequence.
        context_lens: tokens of each sequence up to the last of these.
        num_logits: tokens that reach the head.
        weight_size: bytes of a weight's value.
        entry_size: bytes that are cached of a token in one layer.
    """
    num_tokens = sum(query_lens)
    attention = config.num_hidden_layers * _attention_weights(config)
    head = config.vocab_size * config.hidden_size
    dense, flops_per_token, read = config.num_hidden_layers, 2.0 * attention, float(attention)
    if (moe := config.moe) is not None:
        sparse = sum(map(moe.is_sparse, range(config.num_hidden_layers)))
        dense -= sparse
        expert = 3 * config.hidden_size * moe.moe_intermediate_size
        always = config.hidden_size * moe.n_routed_experts + expert * moe.n_shared_experts
        is_chosen = 1 - (1 - moe.num_experts_per_tok / moe.n_routed_experts) ** num_tokens
        flops_per_token += 2.0 * sparse * (always + expert * moe.num_experts_per_tok)
        read += sparse * (always + expert * moe.n_routed_experts * is_chosen)
    mlp = 3 * config.hidden_size * config.intermediate_size
    flops_per_token += 2.0 * dense * mlp
    read += dense * mlp
    of_pairs = sum(
        _pair_flops(config, is_decode=query_len == 1) * query_len * (context_len - (query_len - 1) / 2)
        for query_len, context_len in zip(query_lens, context_lens, strict=True)
    )
    return Work(
        flops=flops_per_token * num_tokens + config.num_hidden_layers * of_pairs + 2.0 * head * num_logits,
        bytes=(read + (head if num_logits else 0)) * weight_size
        + config.num_hidden_layers * sum(context_lens) * entry_size,
    )


def _attention_weights(config: ModelConfig) -> int:
    """Values of a layer's projections."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    if (mla := config.mla) is None:
        return hidden * config.head_dim * 2 * (heads + config.num_key_value_heads)
    query = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    values = hidden * query if mla.q_lora_rank is None else mla.q_lora_rank * (hidden + query)
    values += hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim)
    values += heads * (mla.qk_nope_head_dim + mla.v_head_dim) * mla.kv_lora_rank + heads * mla.v_head_dim * hidden
    if (indexer := config.indexer) is not None:
        assert mla.q_lora_rank is not None
        values += mla.q_lora_rank * indexer.index_n_heads * indexer.index_head_dim
        values += hidden * (indexer.index_head_dim + indexer.index_n_heads)
    return values


def _pair_flops(config: ModelConfig, *, is_decode: bool) -> float:
    """Of a query and a position that it sees, all heads, in one layer; a prompt's keys and values are expanded."""
    if (mla := config.mla) is None:
        return 4.0 * config.num_attention_heads * config.head_dim
    size = mla.qk_rope_head_dim + (2 * mla.kv_lora_rank if is_decode else mla.qk_nope_head_dim + mla.v_head_dim)
    return 2.0 * config.num_attention_heads * size

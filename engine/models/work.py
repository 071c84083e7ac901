"""The least arithmetic and memory traffic of a step, from the model's shape. Measured times are compared with it.

Counted are matrix products, attention, each weight once a step, and the cached entries that queries see. Not counted
are norms, activations, the sampler, and repeated reads in a kernel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.models.config import ModelConfig, MoEConfig


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a step.

    Attributes:
        flops: 2 for a multiply-add, whatever it is computed in.
        int8_flops: those of them that are in int8.
        bytes: read.
    """

    flops: float
    int8_flops: float
    bytes: float

    def seconds_of(self, peak: float) -> float:
        """Seconds that the arithmetic takes at least, at `peak` flops a second in floats and twice that in int8."""
        return (self.flops - self.int8_flops / 2) / peak


def step_work(
    config: ModelConfig,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    num_logits: int,
    *,
    weight_size: float,
    entry_size: float,
    int8_share: float = 0.0,
) -> Work:
    """The work of a step. An expert's weights count with the probability that at least one token chooses the expert.

    `query_lens` and `context_lens` are tokens of each sequence: those computed, and those with all before them.
    `weight_size` is bytes of one value of a weight, `entry_size` bytes cached for one token in one layer, and
    `int8_share` the share of products with weights that are computed in int8.
    """
    num_tokens, head = sum(query_lens), config.vocab_size * config.hidden_size
    multiplied, read = _layer_weights(config, num_tokens)
    linear_flops = 2.0 * (multiplied * num_tokens + head * num_logits)
    pair_flops, num_entries = _attention_work(config, query_lens, context_lens)
    return Work(
        flops=linear_flops + pair_flops,
        int8_flops=int8_share * linear_flops,
        bytes=(read + (head if num_logits else 0)) * weight_size + num_entries * entry_size,
    )


def _layer_weights(config: ModelConfig, num_tokens: int) -> tuple[float, float]:
    """Weights of all layers that each token is multiplied with, and those that a step of so many tokens reads."""
    num_dense = config.num_hidden_layers
    always = float(num_dense * _attention_weights(config))  # for every token
    multiplied = read = 0.0  # of routed experts
    if (moe := config.moe) is not None:
        num_sparse = sum(map(moe.is_sparse, range(config.num_hidden_layers)))
        num_dense -= num_sparse
        expert = 3 * config.hidden_size * moe.moe_intermediate_size
        always += num_sparse * (_router_weights(config, moe) + expert * moe.n_shared_experts)
        is_chosen = 1 - (1 - moe.num_experts_per_tok / moe.n_routed_experts) ** num_tokens
        multiplied += num_sparse * expert * moe.num_experts_per_tok
        read += num_sparse * expert * moe.n_routed_experts * is_chosen
    if (compression := config.compression) is not None:
        always += 2 * len(compression.layers) * compression.size * config.hidden_size
    always += num_dense * 3 * config.hidden_size * config.intermediate_size
    return always + multiplied, always + read


def _attention_work(config: ModelConfig, query_lens: Sequence[int], context_lens: Sequence[int]) -> tuple[float, int]:
    """Flops of queries with what they see, and cached entries that are read, over all layers."""
    flops, num_entries = 0.0, 0
    for pattern, num_layers in Counter(config.attention_patterns).items():
        for lens in zip(query_lens, context_lens, strict=True):
            flops += num_layers * _pair_flops(config, is_decode=lens[0] == 1) * pattern.num_pairs(*lens)
            num_entries += num_layers * pattern.num_read(*lens)
    return flops, num_entries


def _router_weights(config: ModelConfig, moe: MoEConfig) -> int:
    """Number of weights in the router of one layer."""
    if (size := moe.router_hidden_size) is None:
        return config.hidden_size * moe.n_routed_experts
    return size * (config.hidden_size + moe.n_routed_experts)


def _attention_weights(config: ModelConfig) -> int:
    """Number of weights in the projections of one layer."""
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
    """Flops of a query and one visible position in one layer, over all heads. A prompt's MLA counts as expanded."""
    if (mla := config.mla) is None:
        return 4.0 * config.num_attention_heads * config.head_dim
    size = mla.qk_rope_head_dim + (2 * mla.kv_lora_rank if is_decode else mla.qk_nope_head_dim + mla.v_head_dim)
    return 2.0 * config.num_attention_heads * size

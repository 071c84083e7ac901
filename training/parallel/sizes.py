"""How many parameters a stage of a pipeline has, and a rank of the tensor axis of them. Imports no torch.

Sums only: what they cost in memory and in messages is in training.parallel.memory and training.parallel.traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters of one rank of the tensor axis.

    Attributes:
        matrices: those that enter matrix products, and are cast under autocast.
        others: tables, norms, routers, biases.
    """

    matrices: int = 0
    others: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.others

    def __add__(self, other: Count) -> Count:
        return Count(self.matrices + other.matrices, self.others + other.others)


def layer_count(config: ModelConfig, layer: int, tensor: int) -> Count:
    """One layer, on a rank of `tensor`: its heads, its experts, and all of norms, router and compression block."""
    assert config.moe is not None
    hidden, moe = config.hidden_size, config.moe
    router = moe.router_hidden_size or 0
    attention = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim * hidden
    experts = 3 * moe.n_routed_experts * moe.moe_intermediate_size * hidden
    matrices = (attention + experts) // tensor
    others = 2 * hidden + router * (hidden + 1) + moe.n_routed_experts * (router + 2)
    if config.compression is not None and layer in config.compression.layers:
        matrices += 2 * config.compression.size * hidden
        others += config.compression.size + 3 * hidden
    return Count(matrices, others)


def start_count(config: ModelConfig, tensor: int) -> Count:
    """The first stage's tables."""
    return Count(others=_table(config, tensor) + 2 * config.num_modalities * config.hidden_size)


def end_count(config: ModelConfig, tensor: int, pipeline: int) -> Count:
    """The last stage's norm and heads; a table that is the embedding too is another stage's in a pipeline of one."""
    heads = (len(config.task_heads.labels) + config.task_heads.has_reasoning) * (config.hidden_size + 1)
    has_table = not config.tie_word_embeddings or pipeline > 1
    return Count(has_table * _table(config, tensor), config.hidden_size + heads)


def stage_count(config: ModelConfig, stage: int, tensor: int, pipeline: int) -> Count:
    """All of one stage."""
    num_layers = config.num_hidden_layers // pipeline
    count = Count()
    for layer in range(stage * num_layers, (stage + 1) * num_layers):
        count += layer_count(config, layer, tensor)
    if stage == 0:
        count += start_count(config, tensor)
    if stage == pipeline - 1:
        count += end_count(config, tensor, pipeline)
    return count


def divides_vocabulary(config: ModelConfig, tensor: int) -> bool:
    """Whether the tables of tokens are divided over the tensor axis; else each rank has them whole."""
    return config.vocab_size % tensor == 0


def _table(config: ModelConfig, tensor: int) -> int:
    return config.vocab_size * config.hidden_size // (tensor if divides_vocabulary(config, tensor) else 1)

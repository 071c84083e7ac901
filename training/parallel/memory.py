"""The memory of one rank during a step, part by part, in bytes.

Weights, gradients and optimizer state are fp32. Activations are what autograd keeps of a micro batch, counted from the
modules of training.model; tests/training/parallel/test_memory.py measures them. What allocators and libraries take
comes on top.

Shapes: T places of a micro batch (rows * max_length), H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.model.losses import CHUNK_VALUES
from training.model.visible_blocks import block_plan
from training.parallel.sizes import end_count, layer_count, stage_count

if TYPE_CHECKING:
    from engine.models.config import ModelConfig
    from training.config import Settings

_FLOAT, _HALF, _INDEX = 4, 2, 8  # bytes


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        weights: its share, between steps.
        gathered: weights of other data ranks that it has while it computes.
        copies: weights as matrix products read them, for the micro batches under way.
        gradients: its share, and what is not divided yet.
        optimizer: its share of the state.
        activations: of all micro batches under way.
        output: logits of a chunk, and the gradient of the output's table.
    """

    weights: int
    gathered: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    output: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, name) for name in self.__slots__)


def stage_memory(settings: Settings, config: ModelConfig, stage: int) -> RankMemory:
    """A rank of one stage; those of its data and tensor axes have as much."""
    degrees = settings.parallelism
    tensor, pipeline, data = degrees.tensor, degrees.pipeline, degrees.data
    count = stage_count(config, stage, tensor, pipeline)
    layers = _layers(config, stage, pipeline)
    largest = max(layer_count(config, layer, tensor).total for layer in layers)
    ends = count.total - sum(layer_count(config, layer, tensor).total for layer in layers)
    share = _FLOAT * -(-count.total // data)
    whole = _FLOAT * count.total
    under_way = min(settings.accumulation_steps // data, pipeline - stage)
    is_gathered_whole = pipeline > 1  # else a layer at a time, the next one while this one runs
    gathered = whole if is_gathered_whole else _FLOAT * (ends + 2 * largest)
    is_last = stage == pipeline - 1
    return RankMemory(
        weights=share,
        gathered=gathered if data > 1 else 0,
        copies=_copies(settings, config, stage, under_way),
        gradients=share if data == 1 else share + (whole if is_gathered_whole else _FLOAT * (ends + largest)),
        optimizer=share * {"Lion": 1, "AdamW": 2}[settings.optimizer],
        activations=under_way * _activations(settings, config, stage),
        output=_output(settings, config) if is_last else 0,
    )


def _layers(config: ModelConfig, stage: int, pipeline: int) -> range:
    count = config.num_hidden_layers // pipeline
    return range(stage * count, (stage + 1) * count)


def _copies(settings: Settings, config: ModelConfig, stage: int, under_way: int) -> int:
    """The backward pass of a micro batch needs the copies that its forward pass made."""
    layers = _layers(config, stage, settings.parallelism.pipeline)
    of_layers = [layer_copies(settings, config, layer) for layer in layers]
    return max(of_layers) if settings.activation_checkpointing else under_way * sum(of_layers)


def layer_copies(settings: Settings, config: ModelConfig, layer: int) -> int:
    """Weights as matrix products read them: all in bf16; in fp32, gates beside their experts' ups."""
    tensor = settings.parallelism.tensor
    if settings.precision == "bfloat16":
        return _HALF * layer_count(config, layer, tensor).matrices
    assert config.moe is not None
    experts = config.moe.n_routed_experts // tensor
    return _FLOAT * experts * 2 * config.moe.moe_intermediate_size * config.hidden_size


def _activations(settings: Settings, config: ModelConfig, stage: int) -> int:
    """Of one micro batch."""
    pipeline, hidden = settings.parallelism.pipeline, config.hidden_size
    places = settings.data.micro_batch_size * settings.data.max_length
    of_layers = [layer_activations(settings, config, layer) for layer in _layers(config, stage, pipeline)]
    if settings.activation_checkpointing:
        total = len(of_layers) * _FLOAT * hidden * places + max(of_layers)
    else:
        total = sum(of_layers)
    if stage == 0:
        total += 2 * _FLOAT * hidden * places
    if stage == pipeline - 1:
        total += (_FLOAT + 2 * _compute_size(settings)) * hidden * places
    return total


def layer_activations(settings: Settings, config: ModelConfig, layer: int) -> int:
    """What autograd keeps of one layer and one micro batch on one rank."""
    assert config.moe is not None
    size, hidden, moe = _compute_size(settings), config.hidden_size, config.moe
    router, top_k = moe.router_hidden_size or 0, moe.num_experts_per_tok
    norms = 2 * (_FLOAT * hidden + _FLOAT)
    inputs = (size + _FLOAT) * hidden  # of attention and of the router
    routing = _FLOAT * (2 * router + moe.n_routed_experts + top_k) + _INDEX * (moe.n_routed_experts + 3 * top_k)
    experts = size * (2 * hidden + 3 * moe.moe_intermediate_size) * top_k // settings.parallelism.tensor
    compression = 0
    if config.compression is not None and layer in config.compression.layers:
        compression = size * (hidden + 2 * config.compression.size) + _FLOAT * (hidden + 2)
    places = settings.data.micro_batch_size * settings.data.max_length
    return places * (norms + inputs + routing + experts + compression) + _attention(settings, config, layer)


def _attention(settings: Settings, config: ModelConfig, layer: int) -> int:
    """Queries, keys, values and results; where blocks of keys are gathered, those, and their mask.

    On CPUs in bf16, the weights of gathered keys come on top: there, flash attention is not the fastest way.
    """
    rows, width = settings.data.micro_batch_size, settings.data.max_length
    size, tensor = _compute_size(settings), settings.parallelism.tensor
    queries = config.num_attention_heads * config.head_dim // tensor
    keys = config.num_key_value_heads * config.head_dim // tensor
    softmax = _FLOAT * config.num_attention_heads // tensor
    plan = block_plan(config.attention_patterns[layer], width)
    if plan is None:
        return rows * width * (2 * size * (queries + keys) + softmax)
    num_visible = plan.visible_nV.shape[1]
    group = config.num_attention_heads // config.num_key_value_heads
    mask = plan.num_positions * group * num_visible * plan.size
    return rows * plan.num_positions * (size * (3 * queries + 2 * num_visible * keys) + softmax) + size * mask


def _compute_size(settings: Settings) -> int:
    return _HALF if settings.precision == "bfloat16" else _FLOAT


def _output(settings: Settings, config: ModelConfig) -> int:
    table = end_count(config, settings.parallelism.tensor, 2).matrices
    logits = settings.data.micro_batch_size * settings.data.max_length * table // config.hidden_size
    return _FLOAT * table + 2 * _FLOAT * min(logits, CHUNK_VALUES)

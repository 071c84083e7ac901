"""What one rank sends in a step, by axis, in bytes.

All-reduces, all-gathers and reduce-scatters are counted as rings: of n ranks, each sends (n - 1) / n of the data in
each of their passes, and an all-reduce has two. The statistics of a step and the norm of its gradients are a few
numbers, and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.model.losses import CHUNK_VALUES
from training.parallel.sizes import divides_vocabulary, layer_count, stage_count

if TYPE_CHECKING:
    from engine.models.config import ModelConfig
    from training.config import Settings

_FLOAT, _HALF = 4, 2  # bytes


@dataclass(frozen=True, slots=True)
class AxisTraffic:
    """One axis.

    Attributes:
        sent: bytes that a rank sends in a step.
        messages: collective operations or messages between stages that a rank takes part in, in a step.
        span: ranks from the first to the last of a group, those between included; 1 if there is no group.
    """

    sent: int
    messages: int
    span: int


def stage_traffic(settings: Settings, config: ModelConfig, stage: int) -> dict[str, AxisTraffic]:
    """Of a rank of this stage, by axis."""
    degrees = settings.parallelism
    tensor, data = degrees.tensor, degrees.data
    return {
        "tensor": _tensor(settings, config, stage),
        "data": _data(settings, config, stage),
        "pipeline": _pipeline(settings, config, stage, span=tensor * data + 1 if degrees.pipeline > 1 else 1),
    }


def num_micro_batches(settings: Settings) -> int:
    """Of a step, on each data rank."""
    return settings.accumulation_steps // settings.parallelism.data


def _hidden_values(settings: Settings, config: ModelConfig) -> int:
    """Hidden states of a micro batch."""
    return settings.data.micro_batch_size * settings.data.max_length * config.hidden_size


def _tensor(settings: Settings, config: ModelConfig, stage: int) -> AxisTraffic:
    """Results of attention and experts forward, gradients of their inputs backward."""
    tensor, pipeline = settings.parallelism.tensor, settings.parallelism.pipeline
    if tensor == 1:
        return AxisTraffic(0, 0, 1)
    assert config.moe is not None
    size = _HALF if settings.precision == "bfloat16" else _FLOAT
    values = _hidden_values(settings, config)
    weights = values // config.hidden_size * config.moe.num_experts_per_tok
    again = settings.activation_checkpointing  # the forward pass runs twice
    attention, experts = size * values, _FLOAT * values  # experts' sums are fp32
    layer = (1 + again) * (attention + experts) + attention + size * values + _FLOAT * weights
    num_layers = config.num_hidden_layers // pipeline
    total, messages = num_layers * layer, num_layers * (5 + 2 * again)
    if divides_vocabulary(config, tensor):
        if stage == 0:
            total, messages = total + _FLOAT * values, messages + 1
        if stage == pipeline - 1:
            rows = values // config.hidden_size
            num_chunks = -(-rows * config.vocab_size // tensor // CHUNK_VALUES)
            total, messages = total + size * values + 3 * _FLOAT * rows, messages + 4 * num_chunks
    count = num_micro_batches(settings)
    return AxisTraffic(count * _ring(2 * total, tensor), count * messages, tensor)


def _data(settings: Settings, config: ModelConfig, stage: int) -> AxisTraffic:
    """Weights gathered, gradients divided: once a step in a pipeline, else layer by layer for each micro batch."""
    degrees = settings.parallelism
    if degrees.data == 1:
        return AxisTraffic(0, 0, 1)
    whole = _FLOAT * stage_count(config, stage, degrees.tensor, degrees.pipeline).total
    num_layers, span = config.num_hidden_layers // degrees.pipeline, degrees.tensor * degrees.data
    if degrees.pipeline > 1:
        return AxisTraffic(_ring(2 * whole, degrees.data), 2 * (num_layers + 1), span)
    layers = _FLOAT * sum(layer_count(config, layer, degrees.tensor).total for layer in range(num_layers))
    count = num_micro_batches(settings)
    return AxisTraffic(count * _ring(2 * whole + layers, degrees.data), count * (3 * num_layers + 2), span)


def _pipeline(settings: Settings, config: ModelConfig, stage: int, span: int) -> AxisTraffic:
    """Hidden states to the next stage, their gradients to the one before, in fp32; the gradient of a shared table."""
    degrees, count = settings.parallelism, num_micro_batches(settings)
    neighbours = (stage > 0) + (stage < degrees.pipeline - 1)
    sent = neighbours * count * _FLOAT * _hidden_values(settings, config)
    messages = neighbours * count
    if config.tie_word_embeddings and degrees.pipeline > 1 and stage in (0, degrees.pipeline - 1):
        parts = (degrees.tensor if divides_vocabulary(config, degrees.tensor) else 1) * degrees.data
        sent, messages = sent + _FLOAT * config.vocab_size * config.hidden_size // parts, messages + 1
    return AxisTraffic(sent, messages, span)


def _ring(size: int, ranks: int) -> int:
    return size * (ranks - 1) // ranks

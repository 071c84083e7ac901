"""`deepseek-train --plan`: what each rank of a layout needs and sends, from the recipe and config.json alone.

Nothing is started and no weight is read, so that a layout of hundreds of ranks can be weighed on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.model.description import ModelDescription
from training.parallel.degrees import check_degrees
from training.parallel.memory import RankMemory, stage_memory
from training.parallel.sizes import stage_count
from training.parallel.traffic import num_micro_batches, stage_traffic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.models.config import ModelConfig
    from training.config import Settings

_MOST_COLUMNS = 4  # stages that are shown
_PARTS = {
    "weights": "weights, fp32",
    "gathered": "weights of other data ranks",
    "copies": "copies of weights",  # in bf16, or where products read gates and ups side by side
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "output": "logits and output gradient",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout's text, and whether it fits the memory that was given (True if none was)."""

    text: str
    fits: bool


def make_plan(settings: Settings, memory_gib: float | None = None, ranks_per_node: int = 8) -> Plan:
    """The plan of a recipe, for ranks of so much memory, of which so many share the fast link of one machine.

    Raises:
        DeepseekServeError: config.json is at fault, or the degrees do not fit it.
    """
    config = ModelDescription.read(settings.model).config
    check_degrees(settings, config)
    stages = [stage_memory(settings, config, stage) for stage in range(settings.parallelism.pipeline)]
    verdict, fits = _verdict(settings, config, stages, memory_gib)
    tables = (_memory_table(stages), _traffic_table(settings, config, ranks_per_node))
    return Plan("\n".join([*_head(settings, config, ranks_per_node), *tables, verdict, ""]), fits)


def _head(settings: Settings, config: ModelConfig, ranks_per_node: int) -> list[str]:
    degrees, data = settings.parallelism, settings.data
    pipeline, count = degrees.pipeline, num_micro_batches(settings)
    total = sum(stage_count(config, stage, 1, pipeline).total for stage in range(pipeline))
    tokens = settings.accumulation_steps * data.micro_batch_size * data.max_length
    idle = (pipeline - 1) / (count + pipeline - 1)
    return [
        f"layout    tensor {degrees.tensor} x pipeline {pipeline} x data {degrees.data}: {degrees.num_ranks} "
        f"rank{'s' * (degrees.num_ranks > 1)}, {ranks_per_node} a node",
        f"model     {total:,} parameters; {config.num_hidden_layers // pipeline} layers a stage",
        f"a step    {settings.accumulation_steps} micro batches of {data.micro_batch_size} x {data.max_length} tokens "
        f"({tokens:,} tokens), {count} on each data rank"
        + (f"; stages wait {idle:.0%} of it for others" if pipeline > 1 else ""),
        "",
    ]


def _memory_table(stages: list[RankMemory]) -> str:
    unit, name = _unit(max(stage.total for stage in stages))
    shown = _shown(len(stages))
    rows = [[f"memory of a rank, {name}", *(f"stage {stage}" for stage in shown)]]
    for part, label in (*_PARTS.items(), ("total", "together")):
        values = [getattr(stages[stage], part) / unit for stage in shown]
        if any(values):
            rows.append([f"  {label}", *(f"{value:.2f}" for value in values)])
    return _aligned(rows)


def _traffic_table(settings: Settings, config: ModelConfig, ranks_per_node: int) -> str:
    shown = _shown(settings.parallelism.pipeline)
    traffic = [stage_traffic(settings, config, stage) for stage in shown]
    unit, name = _unit(max(axis.sent for stage in traffic for axis in stage.values()))
    rows = [[f"sent by a rank in a step, {name}", *(f"stage {stage}" for stage in shown), "link"]]
    for axis in ("tensor", "data", "pipeline"):
        if (span := traffic[0][axis].span) == 1:
            continue
        values = [f"{stage[axis].sent / unit:.2f} in {stage[axis].messages}" for stage in traffic]
        is_inside = span <= ranks_per_node and ranks_per_node % span == 0
        if axis == "pipeline":  # neighbours, of which some lie on two nodes unless a node holds the whole pipeline
            is_inside = settings.parallelism.num_ranks <= ranks_per_node
        rows.append([f"  {axis}", *values, "in a node" if is_inside else "between nodes"])
    return _aligned(rows) if len(rows) > 1 else "sent by a rank in a step: nothing, there is one\n"


def _verdict(
    settings: Settings, config: ModelConfig, stages: list[RankMemory], memory_gib: float | None
) -> tuple[str, bool]:
    worst = max(range(len(stages)), key=lambda stage: stages[stage].total)
    need = stages[worst].total
    if memory_gib is None:
        return f"A rank needs {_size(need)} (stage {worst}). --memory GIB tells whether that fits.", True
    given = f"{memory_gib:g} GiB"
    if need <= memory_gib * 2**30:
        return f"It fits: the fullest rank needs {_size(need)} of {given} (stage {worst}).", True
    part = max(_PARTS, key=lambda name: getattr(stages[worst], name))
    text = (
        f"It does not fit: a rank of stage {worst} needs {_size(need)} of {given}, of which "
        f"{_size(getattr(stages[worst], part))} are {_PARTS[part]}. {_remedy(settings, config, memory_gib * 2**30)}"
    )
    return text, False


def _remedy(settings: Settings, config: ModelConfig, memory: float) -> str:
    """The first of a few changes that make it fit."""
    small = settings.data.model_copy(update={"micro_batch_size": 1})
    changes: Mapping[str, dict[str, object]] = {
        "activation_checkpointing: true": {"activation_checkpointing": True},
        "data.micro_batch_size: 1": {"data": small},
        "both activation_checkpointing: true and data.micro_batch_size: 1": {
            "activation_checkpointing": True,
            "data": small,
        },
    }
    for text, update in changes.items():
        changed = settings.model_copy(update=update)
        need = max(stage_memory(changed, config, stage).total for stage in range(settings.parallelism.pipeline))
        if need <= memory:
            return f"With {text}, it needs {_size(need)}."
    return "A larger parallelism.tensor or parallelism.pipeline divides weights and activations further."


def _shown(count: int) -> list[int]:
    """All stages, or the first two and the last one."""
    return list(range(count)) if count <= _MOST_COLUMNS else [0, 1, count - 1]


def _unit(largest: float) -> tuple[int, str]:
    return (2**30, "GiB") if largest >= 2**29 else (2**20, "MiB")


def _size(value: float) -> str:
    unit, name = _unit(value)
    return f"{value / unit:.2f} {name}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        columns = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([label.ljust(widths[0]), *columns]))
    return "\n".join([*lines, ""])

"""Whether degrees of parallelism fit a model, a recipe and the processes that were started. Imports no torch.

Everything that can be wrong with the three numbers is said here, before a process group or a weight exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.models.config import ModelConfig
    from training.config import ParallelismSettings, Settings


def check_processes(degrees: ParallelismSettings, environment: Mapping[str, str]) -> None:
    """The degrees' product is the number of processes: torchrun's WORLD_SIZE in `environment`, or 1 without it.

    Raises:
        TrainingError: it is not.
    """
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != degrees.num_ranks:
        raise TrainingError(
            f"parallelism is tensor {degrees.tensor} x pipeline {degrees.pipeline} x data {degrees.data}, which is "
            f"{degrees.num_ranks} process{'es' * (degrees.num_ranks > 1)}, and {started} "
            f"{'were' if started > 1 else 'was'} started; expected torchrun --nproc-per-node {degrees.num_ranks} "
            "-m training.cli CONFIG (or as many over several nodes)"
        )


def check_degrees(settings: Settings, config: ModelConfig) -> None:
    """Each degree divides what it divides: heads and experts, layers, micro batches.

    Raises:
        TrainingError: naming the degree, what it must divide and the degrees that do.
    """
    degrees, experts = settings.parallelism, config.moe.n_routed_experts if config.moe else 0
    divided = {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "moe_num_experts": experts,
    }
    _check("tensor", degrees.tensor, divided)
    _check("pipeline", degrees.pipeline, {"num_hidden_layers": config.num_hidden_layers})
    _check("data", degrees.data, {"accumulation_steps": settings.accumulation_steps})


def _check(axis: str, degree: int, divided: Mapping[str, int]) -> None:
    if not any(number % degree for number in divided.values()):
        return
    valid = [str(n) for n in range(1, min(divided.values()) + 1) if not any(number % n for number in divided.values())]
    names = [f"{name} ({number})" for name, number in divided.items()]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    or_else = f", or accumulation_steps that are a multiple of {degree}" if axis == "data" else ""
    raise TrainingError(f"parallelism.{axis} is {degree}; expected a divisor of {listed}: {', '.join(valid)}{or_else}")

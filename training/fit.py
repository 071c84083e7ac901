"""Whether a model can be trained in the memory that is free, told before any of it is built.

Counted is what each trained parameter takes at least: activations come on top (training.parallel.memory).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from engine.device import GIB, available_bytes
from training.config import HeadSettings
from training.errors import TrainingError
from training.parallel.sizes import stage_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.models.config import ModelConfig
    from training.config import Settings

_FLOAT = 4  # bytes
GRADIENTS_AND_SUMS = 2  # values for each trained one, beside it: what --fisher has
TRAINED = {"Lion": 2, "AdamW": 3}  # the same with an optimizer's state


def num_parameters(config: ModelConfig) -> int:
    """Of the whole model; a table of tokens that is also the output counts once."""
    return stage_count(config, 0, tensor=1, pipeline=1).total


def check_fits(settings: Settings, config: ModelConfig, device: torch.device, beside: int) -> None:
    """Refuse a model of which a rank's part cannot fit, with `beside` values for each value that is trained.

    Raises:
        TrainingError: the text says what is needed and free.
    """
    needed = _FLOAT * _values(settings, config, beside)
    free = available_bytes(device, with_swap=True)
    if needed > free:
        raise TrainingError(
            f"{settings.model} has {num_parameters(config):,} parameters: with gradients and sums, a process needs at "
            f"least {_gib(needed)} GiB, and {_gib(free)} are free. Expected a smaller model, or parallelism that "
            "divides it (deepseek-train --plan tells what a layout needs)"
        )


@contextmanager
def enough_memory(otherwise: str) -> Iterator[None]:
    """Tell of too little memory in one line: `otherwise`.

    Raises:
        TrainingError: there is not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's error on a GPU is a RuntimeError, and on a CPU a plain one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(f"there is not enough memory {otherwise}") from error


def _values(settings: Settings, config: ModelConfig, beside: int) -> int:
    """What the fullest rank has at least, with the reference that dpo has whole."""
    degrees, objective = settings.parallelism, settings.objective
    tensor, pipeline = degrees.tensor, degrees.pipeline
    stages = (stage_count(config, stage, tensor, pipeline).total for stage in range(pipeline))
    is_head_alone = isinstance(objective, HeadSettings) and objective.train == "head"
    own = max(stages) // degrees.data * (1 if is_head_alone else 1 + beside)
    return own + (num_parameters(config) if objective.kind == "dpo" else 0)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.3g}" if num_bytes < 1000 * GIB else f"{num_bytes // GIB:,}"

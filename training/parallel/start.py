"""Starts this process as one rank of a run: process group, its part of the model, worker."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from training.model.build import build_model
from training.parallel.ranks import started_ranks
from training.parallel.tensor import divide
from training.parallel.worker import ParallelWorker
from training.worker import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.config import Settings
    from training.model.description import ModelDescription


@contextmanager
def parallel_worker(
    settings: Settings, description: ModelDescription, device: torch.device
) -> Iterator[ParallelWorker]:
    """A worker for one of torchrun's processes, with new weights or the folder's.

    training.parallel.degrees has found that the degrees fit.

    Raises:
        ModelError: the folder's tensors do not fit the config.
    """
    weights = settings.model if settings.model.is_dir() else None
    may_be_new = settings.objective.kind in ("classification", "reasoning")
    with started_ranks(settings.parallelism, device) as ranks:
        layers = ranks.layers(description.config.num_hidden_layers)
        module = build_model(
            description,
            weights,
            seed=settings.seed,
            layers=layers,
            heads_may_be_new=may_be_new,
            divide=partial(divide, ranks=ranks),
        )
        module.activation_checkpointing = settings.activation_checkpointing
        yield ParallelWorker(module.to(ranks.device), ranks, DTYPES[settings.precision])

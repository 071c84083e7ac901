"""Starts this process as one rank of a run: process group, its part of the model, worker."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from training.parallel.ranks import started_ranks
from training.parallel.tensor import divide
from training.parallel.worker import ParallelWorker
from training.worker import DTYPES, make_module

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
    with started_ranks(settings.parallelism, device) as ranks:
        layers = ranks.layers(description.config.num_hidden_layers)
        module = make_module(settings, description, layers=layers, divide=partial(divide, ranks=ranks))
        yield ParallelWorker(module.to(ranks.device), ranks, DTYPES[settings.precision])

"""Gradients of all ranks together: their norm, and the sum for a table that two stages share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from training.parallel.ranks import Ranks


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of a tensor."""
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def clip(parameters: Iterable[nn.Parameter], counted: Iterable[nn.Parameter], max_norm: float, ranks: Ranks) -> float:
    """Scale the gradients so that their norm over all ranks is at most `max_norm`; the norm before.

    `counted` are those parameters whose norm this rank adds: over all ranks, each value of the model is counted once.
    """
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in _gradients(counted)]
    squares = float(torch.stack(norms).double().square().sum()) if norms else 0.0
    norm = math.sqrt(ranks.sum([squares])[0])
    factor = min(1.0, max_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ has it
    if factor < 1:
        for gradient in _gradients(parameters):
            gradient.mul_(factor)
    return norm


def add_over_ends(table: nn.Parameter, ranks: Ranks) -> None:
    """Sum the gradient of a table that the first and the last stage have; one that a loss did not use has none."""
    if not table.requires_grad:
        return
    if table.grad is None:
        table.grad = torch.zeros_like(table)
    dist.all_reduce(local_part(table.grad), group=ranks.ends())


def _gradients(parameters: Iterable[nn.Parameter]) -> Iterator[torch.Tensor]:
    return (local_part(parameter.grad) for parameter in parameters if parameter.grad is not None)

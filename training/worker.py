"""What the loop knows of processes: one object that computes a step's gradients, be they of one process or of many.

LocalWorker is one process with the whole model. training.parallel has the one of many ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from training.batch import Batch
    from training.objectives.objective import Objective


class Worker(Protocol):
    """A rank's part of the model, and what all ranks do together.

    Attributes:
        module: the parameters that this rank has, under the checkpoint's names (tensors or DTensors).
        device: where batches must be.
        data_rank, data_degree: which share of the data this rank reads; equal in ranks of one model.
        rank: this process among all.
        is_main: whether this rank reports and writes what is written once.
    """

    module: nn.Module
    device: torch.device
    data_rank: int
    data_degree: int
    rank: int
    is_main: bool

    def forward_backward(self, objective: Objective, batches: Sequence[Batch], scale: float) -> Mapping[str, float]:
        """Add the gradients of `scale` times the summed loss of these micro batches, and of their balancing losses.

        Balancing losses are averaged over the micro batches of all data ranks.

        Returns:
            "loss" and the objective's metrics, summed over these micro batches, on every rank of this model.
        """
        ...

    def forward(self, objective: Objective, batches: Sequence[Batch]) -> Mapping[str, float]:
        """The same sums, without gradients; called under torch.no_grad, with the module in eval mode."""
        ...

    def take_statistics(self) -> Mapping[str, float]:
        """What routers did since the last call, over all layers and ranks; empty if there was no step.

        "expert_load_min" and "expert_load_max" are of the least and the most used expert of any layer, as multiples of
        an even share; "dropped" is the share of choices that found their expert full; "balance_loss" is a layer's mean.
        """
        ...

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """Sums over the data ranks, the same on each rank."""
        ...

    def max_over_ranks(self, value: int) -> int:
        """The largest of the ranks' numbers, the same on each rank."""
        ...

    def clip_gradients(self, max_norm: float) -> float:
        """Scale the gradients so that their norm over all ranks is at most `max_norm`; the norm before."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...


class LocalWorker:
    """One process with the whole model."""

    data_rank, data_degree, rank, is_main = 0, 1, 0, True

    def __init__(self, module: nn.Module, device: torch.device, autocast: AbstractContextManager[None]) -> None:
        self.module = module
        self.device = device
        self._autocast = autocast

    def forward_backward(self, objective: Objective, batches: Sequence[Batch], scale: float) -> Mapping[str, float]:
        """One micro batch after the other."""
        sums: dict[str, torch.Tensor] = {}
        for batch in batches:
            with self._autocast:
                loss = objective.loss(self.module, self.module(batch.tokens), batch)
            (loss.sum * scale).backward()
            for name, value in {"loss": loss.sum, **loss.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value.detach()
        return {name: float(value) for name, value in sums.items()}

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """There is one data rank."""
        return list(values)

    def max_over_ranks(self, value: int) -> int:
        """There is one rank."""
        return value

    def clip_gradients(self, max_norm: float) -> float:
        """Torch's own."""
        return float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm))

    def barrier(self) -> None:
        """There is no other rank."""

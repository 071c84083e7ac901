"""What the loop knows of processes: one object that computes a step's gradients, be they of one process or of many.

LocalWorker is one process with the whole model. training.parallel has the one of many ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from training.model.build import build_model
from training.objectives.heads import freeze_body
from training.router_load import router_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from training.batch import Batch
    from training.config import Settings
    from training.model.description import ModelDescription
    from training.model.dynamic_moe import DynamicMoE
    from training.objectives.objective import LossSum, Objective


class Worker(Protocol):
    """A rank's part of the model, and what all ranks do together.

    Attributes:
        module: the parameters that this rank has, under the checkpoint's names (tensors or DTensors).
        device: where batches must be.
        data_rank, data_degree: which share of the data this rank reads; equal in ranks of one model.
        rank: this process among all.
        is_main: whether this rank reports and writes what is written once.
    """

    module: DynamicMoE
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
        """What routers did since the last call, over all layers and ranks, as training.router_load has it."""
        ...

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """Sums over the data ranks, the same on each rank."""
        ...

    def sum_over_parts(self, values: Mapping[str, float]) -> float:
        """The sum over the whole model of what each rank tells of its parts of parameters."""
        ...

    def max_over_ranks(self, value: int) -> int:
        """The largest of the ranks' numbers, the same on each rank."""
        ...

    def clip_gradients(self, max_norm: float) -> float:
        """Scale the gradients so that their norm over all ranks is at most `max_norm`; the norm before."""
        ...

    def gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter of the whole model, one after the other; all ranks iterate, the main one gets the tensors."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...


class LocalWorker:
    """One process with the whole model.

    Attributes:
        dtype: what autocast computes in; fp32 is no autocast.
    """

    data_rank, data_degree, rank, is_main = 0, 1, 0, True

    def __init__(self, module: DynamicMoE, device: torch.device, dtype: torch.dtype) -> None:
        self.module, self.device, self.dtype = module.to(device), device, dtype
        self._balance_loss_weight = module.balance_loss_weight

    def forward_backward(self, objective: Objective, batches: Sequence[Batch], scale: float) -> Mapping[str, float]:
        """One micro batch after the other."""
        self.module.balance_loss_weight = self._balance_loss_weight / len(batches)
        sums = Sums()
        for batch in batches:
            loss = self._loss(objective, batch)
            (loss.sum * scale).backward()
            sums.add(loss)
        return sums.values()

    def forward(self, objective: Objective, batches: Sequence[Batch]) -> Mapping[str, float]:
        """One micro batch after the other."""
        sums = Sums()
        for batch in batches:
            sums.add(self._loss(objective, batch))
        return sums.values()

    def _loss(self, objective: Objective, batch: Batch) -> LossSum:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return objective.loss(self.module, self.module(batch.tokens), batch)

    def take_statistics(self) -> Mapping[str, float]:
        """Of all layers."""
        return router_load(self.module.statistics.take())

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """There is one data rank."""
        return list(values)

    def sum_over_parts(self, values: Mapping[str, float]) -> float:
        """All parts are here."""
        return sum(values.values())

    def max_over_ranks(self, value: int) -> int:
        """There is one rank."""
        return value

    def clip_gradients(self, max_norm: float) -> float:
        """As torch does it."""
        return float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm))

    def gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        """They are all here."""
        return self.module.named_parameters()

    def barrier(self) -> None:
        """There is no other rank."""


class Sums:
    """The loss and the metrics of micro batches, added up on their device."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, loss: LossSum) -> None:
        """Add those of a micro batch."""
        for name, value in {"loss": loss.sum, **loss.metrics}.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def values(self) -> dict[str, float]:
        """The sums; waits for the device."""
        return {name: float(value) for name, value in self._sums.items()}


DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def local_worker(settings: Settings, description: ModelDescription, device: torch.device) -> LocalWorker:
    """A worker for one process, with new weights or the folder's."""
    return LocalWorker(make_module(settings, description), device, DTYPES[settings.precision])


def make_module(
    settings: Settings,
    description: ModelDescription,
    *,
    layers: range | None = None,
    divide: Callable[[DynamicMoE], None] | None = None,
) -> DynamicMoE:
    """The model of a recipe, or a rank's part of it (training.model.build)."""
    weights = settings.model if settings.model.is_dir() else None
    may_be_new = settings.objective.kind in ("classification", "reasoning")
    module = build_model(
        description, weights, seed=settings.seed, layers=layers, heads_may_be_new=may_be_new, divide=divide
    )
    module.activation_checkpointing = settings.activation_checkpointing
    freeze_body(module, settings)
    return module

"""The worker of one rank among many: its part of the model, and what all ranks do together (training.worker)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from training.parallel import gradients
from training.parallel.gathering import gather
from training.parallel.pipeline import Pipeline
from training.parallel.router_sums import sum_statistics
from training.parallel.shards import shard
from training.parallel.stage import Stage
from training.parallel.tensor import divided_names
from training.router_load import router_load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from training.batch import Batch
    from training.model.dynamic_moe import DynamicMoE
    from training.objectives.objective import Objective
    from training.parallel.ranks import Ranks


class ParallelWorker:
    """A rank. Its model is divided over the tensor axis already; the worker divides it over the data axis."""

    def __init__(self, model: DynamicMoE, ranks: Ranks, dtype: torch.dtype) -> None:
        """`model` has the layers `ranks.layers(...)`, and what training.parallel.tensor left it of them."""
        degrees = ranks.degrees
        divided = divided_names(model, ranks)
        self._stage = Stage(model, dtype)
        if degrees.data > 1:
            layers = model.model.layers.values()
            shard(self._stage, layers, ranks.mesh["data"], is_pipeline=degrees.pipeline > 1)
        self._pipeline = Pipeline(self._stage, ranks) if degrees.pipeline > 1 else None
        self.module, self.device, self._ranks = model, ranks.device, ranks
        self._balance_loss_weight = model.balance_loss_weight
        self.data_rank, self.data_degree = ranks.data, degrees.data
        self.rank, self.is_main = ranks.rank, ranks.rank == 0
        self._shared = _shared_table(model, ranks)
        self._counted = {  # each value of the model is counted by one rank
            name: parameter
            for name, parameter in model.named_parameters()
            if (ranks.tensor == 0 or name in divided) and not (parameter is self._shared and ranks.is_first_stage)
        }

    def forward_backward(self, objective: Objective, batches: Sequence[Batch], scale: float) -> Mapping[str, float]:
        """In a pipeline, by its schedule; else one micro batch after the other."""
        self.module.balance_loss_weight = self._balance_loss_weight / (len(batches) * self.data_degree)
        sums = self._run(objective, batches, scale)
        if self._shared is not None:
            gradients.add_over_ends(self._shared, self._ranks)
        return sums

    def forward(self, objective: Objective, batches: Sequence[Batch]) -> Mapping[str, float]:
        """The same without gradients."""
        return self._run(objective, batches, 1.0)

    def _run(self, objective: Objective, batches: Sequence[Batch], scale: float) -> Mapping[str, float]:
        if self._pipeline is not None:
            self._pipeline.run(objective, batches, scale)
            return self._from_last_stage(self._stage.take_sums())
        self._stage.prepare(objective, batches, scale)
        for number in torch.arange(len(batches)):
            loss = self._stage(number=number)
            if torch.is_grad_enabled():
                loss.backward()
        return self._stage.take_sums()

    def _from_last_stage(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        told, last = [sums], self._ranks.degrees.pipeline - 1
        dist.broadcast_object_list(told, group=self._ranks.group("pipeline"), group_src=last, device=self.device)
        return told[0]

    def take_statistics(self) -> Mapping[str, float]:
        """Of all layers, over all data ranks."""
        own = self.module.statistics.take()
        return router_load(sum_statistics(own, self.module.config, self._ranks))

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """Over the ranks with the same part of the model."""
        return self._ranks.sum(values, "data")

    def sum_over_parts(self, values: Mapping[str, float]) -> float:
        """Of values that several ranks have, one of them counts."""
        return self._ranks.sum([sum(value for name, value in values.items() if name in self._counted)])[0]

    def max_over_ranks(self, value: int) -> int:
        """Over all of them."""
        return int(self._ranks.max(value))

    def clip_gradients(self, max_norm: float) -> float:
        """By the norm of the whole model."""
        return gradients.clip(self.module.parameters(), self._counted.values(), max_norm, self._ranks)

    def gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        """From the ranks that have them."""
        return gather(self.module, self._ranks)

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


def _shared_table(model: DynamicMoE, ranks: Ranks) -> nn.Parameter | None:
    """The table of tokens, if the first stage has it as its embedding and the last one as its output."""
    if not model.config.tie_word_embeddings or ranks.degrees.pipeline == 1:
        return None
    ranks.ends()  # all ranks make the groups, and stages between the ends are in none
    if not ranks.is_first_stage and not ranks.is_last_stage:
        return None
    table = model.model.embed_tokens.weight
    assert isinstance(table, nn.Parameter)
    return table

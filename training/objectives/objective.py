"""The contract of an objective: a count known before the forward pass, and a loss summed over that count.

The loop divides by the count of a whole step (all micro batches of all data ranks), so that a step's gradient does not
depend on how its rows are divided. The forward pass is the worker's (training.worker): a pipeline runs it in stages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from training.batch import Batch
    from training.config import Settings
    from training.model.dynamic_moe import DynamicMoE


@dataclass(frozen=True, slots=True)
class LossSum:
    """The loss of one micro batch, summed and not averaged.

    Attributes:
        sum: a scalar in fp32, with its graph.
        metrics: other sums over the same count, such as pairs that are ranked rightly; shown as means.
    """

    sum: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What a batch is trained for. `training/objectives/<kind>.py` has it, and `make(settings)`, which makes it."""

    def count(self, batch: Batch) -> int:
        """What the loss is a mean over, in this micro batch: target tokens, pairs or rows."""
        ...

    def loss(self, model: DynamicMoE, hidden_BTH: torch.Tensor, batch: Batch) -> LossSum:
        """The summed loss, of hidden states after the final norm; `model` has the heads that the objective needs."""
        ...


def make(settings: Settings) -> Objective:
    """The objective that the settings name.

    Raises:
        DeepseekServeError: the settings or the model do not fit the objective.
    """
    module = import_module(f"training.objectives.{settings.objective.kind}")
    objective: Objective = module.make(settings)
    return objective

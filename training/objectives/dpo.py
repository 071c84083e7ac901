"""Direct preference optimisation (arXiv 2305.18290), with a frozen reference: the model as the run found it.

Rows 2i and 2i + 1 of a batch are the chosen and the rejected answer to one prompt; targets are the answers' tokens.
The reference computes each micro batch beside the model. It is whole in every process that computes the loss.

Shapes: B rows of a batch, T padded tokens, P = B / 2 pairs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from training.config import DPOSettings
from training.errors import TrainingError
from training.model.build import build_model
from training.model.description import ModelDescription
from training.model.losses import target_logprobs
from training.objectives.objective import LossSum

if TYPE_CHECKING:
    from training.batch import Batch
    from training.config import Settings
    from training.model.dynamic_moe import DynamicMoE


class DPO:
    """The loss of pairs: -log sigmoid(beta * margin), where the margin is how much more the chosen answer has gained.

    An answer's gain is its log-probability less the reference's. Metrics: `ranked_right` is the share of pairs with a
    margin above 0, `margin` the mean of beta * margin.
    """

    def __init__(self, reference: DynamicMoE, beta: float) -> None:
        """`reference` has no dropout. Its experts drop what the model's would, so that both start with equal values."""
        self._reference, self._beta = reference.requires_grad_(requires_grad=False), beta

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.targets_BT) // 2

    def loss(self, model: DynamicMoE, hidden_BTH: torch.Tensor, batch: Batch) -> LossSum:
        """Summed over the pairs."""
        gains_B = target_logprobs(model, hidden_BTH, batch.targets_BT).sum(1) - self._reference_logprobs(model, batch)
        margins_P = self._beta * (gains_B[::2] - gains_B[1::2])
        found = margins_P.detach()
        metrics = {"ranked_right": (found > 0).sum().float(), "margin": found.sum()}
        return LossSum(-F.logsigmoid(margins_P).sum(), metrics)

    @torch.no_grad()
    def _reference_logprobs(self, model: DynamicMoE, batch: Batch) -> torch.Tensor:
        reference = self._reference.to(batch.targets_BT.device).train(model.training)
        with reference.statistics.paused():
            hidden_BTH = reference(batch.tokens)
        return target_logprobs(reference, hidden_BTH, batch.targets_BT).sum(1)


def make(settings: Settings) -> DPO:
    """Read the reference, which is what `model` names.

    Raises:
        TrainingError: `model` has no weights.
        ModelError: they cannot be read.
    """
    assert isinstance(settings.objective, DPOSettings)
    if not settings.model.is_dir():
        raise TrainingError(f"model is {settings.model}; objective dpo expects a folder with the weights to start from")
    description = ModelDescription.read(settings.model)
    without_dropout = replace(description.sizes, hidden_dropout=0.0, attention_dropout=0.0)
    return DPO(build_model(replace(description, sizes=without_dropout), settings.model), settings.objective.beta)

"""What the objectives of task heads share: the head in the model's description, and its input.

Shapes: B rows of a batch, T padded tokens, H hidden, L values of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.config import ClassificationSettings, HeadSettings, ReasoningSettings
from training.errors import TrainingError
from training.model.description import ModelDescription
from training.model.dynamic_moe import last_hidden

if TYPE_CHECKING:
    import torch

    from training.batch import Batch
    from training.config import Settings
    from training.model.dynamic_moe import DynamicMoE


def with_heads(description: ModelDescription, settings: Settings) -> ModelDescription:
    """The model with the head that the objective trains, which is new where the config.json has none.

    Raises:
        TrainingError: labels are missing, or are others than the model's.
    """
    objective, heads = settings.objective, dict(description.raw.get("task_heads") or {})
    if isinstance(objective, ClassificationSettings):
        own = description.config.task_heads.labels
        if not own and objective.labels is None:
            raise TrainingError(
                f"{settings.model} has no classification head; expected objective.labels, the names of its classes, or "
                "task_heads in config.json"
            )
        if own and objective.labels not in (None, own):
            raise TrainingError(
                f"objective.labels is {', '.join(objective.labels or ())}; the model's labels are {', '.join(own)}"
            )
        heads["classification"] = {"labels": list(own or objective.labels or ())}
    elif isinstance(objective, ReasoningSettings):
        heads.setdefault("reasoning", {})
    else:
        return description
    return ModelDescription.parse({**description.raw, "task_heads": heads})


def freeze_body(model: DynamicMoE, settings: Settings) -> None:
    """With `train: head`, no other weight moves, not even by the balancing losses of stages without a head."""
    objective = settings.objective
    if isinstance(objective, HeadSettings) and objective.train == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("heads."))


def head_values(
    model: DynamicMoE, hidden_BTH: torch.Tensor, batch: Batch, head: str, *, only_head: bool
) -> torch.Tensor:
    """A head's values of each row's last token, [B, L] in fp32; with `only_head` no gradient goes beyond the head."""
    hidden_BH = last_hidden(hidden_BTH, batch.tokens)
    values_BL: torch.Tensor = model.heads[head](hidden_BH.detach() if only_head else hidden_BH)
    return values_BL.float()


def labels_of(batch: Batch) -> torch.Tensor:
    """The rows' labels, [B]."""
    assert batch.labels_B is not None, "batches of another kind of data"
    return batch.labels_B

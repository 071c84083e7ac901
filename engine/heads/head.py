"""What the ModelRunner asks of each head, and which heads a model has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.heads.classify import ClassifyHead
from engine.heads.embed import EmbedHead
from engine.heads.generate import GenerateHead
from engine.heads.value import ValueHead

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from engine.engine_info import Task
    from engine.models.decoder import Decoder
    from engine.step import StepPlan, StepResult


class Head(Protocol):
    """A task's part of a step, after the final norm. Keeps nothing of a sequence."""

    def rows(self, plan: StepPlan) -> list[int]:
        """The step's tokens, counted from 0, whose hidden states the head reads; none if it has nothing to do."""

    def add(self, result: StepResult, plan: StepPlan, hidden_RH: torch.Tensor) -> None:
        """Add to a step's result what the head makes of these hidden states."""


def heads_of(model: Decoder) -> list[Head]:
    """The heads of a model's tasks."""
    made: dict[Task, Callable[[Decoder], Head]] = {
        "generate": GenerateHead,
        "embed": EmbedHead,
        "classify": ClassifyHead,
        "value": ValueHead,
    }
    return [made[task](model) for task in model.config.task_heads.tasks]

"""The optimizer of the recipe, and its state by the names of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from training.config import Settings


def make_optimizer(settings: Settings, module: nn.Module) -> Optimizer:
    """Lion (arXiv 2302.06675) or AdamW over the parameters that are trained; only matrices decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    if settings.optimizer == "AdamW":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas)
    from lion_pytorch import Lion

    optimizer: Optimizer = Lion(groups, lr=settings.learning_rate, betas=betas)
    return optimizer


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state: `<parameter>/<entry>` -> the tensor itself, not a copy.

    A parameter that never had a gradient has no entry.
    """
    return {
        f"{name}/{entry}": value
        for name, parameter in module.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def add_empty_state(module: nn.Module, optimizer: Optimizer, shapes: dict[str, torch.Size]) -> None:
    """Give the optimizer state of these names and shapes, divided over ranks as the parameters are, to be filled."""
    for name, parameter in module.named_parameters():
        prefix = f"{name}/"
        for key, shape in shapes.items():
            if key.startswith(prefix):
                is_like = shape == parameter.shape
                optimizer.state[parameter][key.removeprefix(prefix)] = (
                    torch.zeros_like(parameter, requires_grad=False) if is_like else torch.zeros(shape)
                )

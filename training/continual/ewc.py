"""The penalty of elastic weight consolidation: strength / 2 * sum of F * (w - w*) ** 2.

Its gradient, strength * F * (w - w*), is added to the gradients that are there, once a step and without a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor

from training.continual.fisher import FISHER, WEIGHT
from training.errors import TrainingError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


class EWCPenalty:
    """Holds the weights of a model, or of a rank's part of it, that an old task needs. New parameters are free."""

    def __init__(self, path: Path, strength: float, module: nn.Module) -> None:
        """Read what training.continual.fisher has saved.

        Raises:
            TrainingError: it is no such file, or of another model.
        """
        self._strength = strength
        self._held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # F and w*, as this rank has the parameter
        try:
            with safe_open(path, "pt") as file:
                known = {name.removeprefix(FISHER) for name in file.keys() if name.startswith(FISHER)}  # noqa: SIM118
                for name, parameter in module.named_parameters():
                    if name in known:
                        tensors = file.get_tensor(FISHER + name), file.get_tensor(WEIGHT + name)
                        self._held[name] = _placed(tensors[0], name, parameter), _placed(tensors[1], name, parameter)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"ewc.fisher {path} cannot be read: {error}") from None
        if not self._held:
            raise TrainingError(
                f"ewc.fisher {path} has none of this model's parameters; deepseek-train --fisher writes it"
            )

    @torch.no_grad()
    def add_gradients(self, module: nn.Module) -> dict[str, float]:
        """Add the gradients; each parameter's share of the penalty's value, or that of a rank's part of it."""
        values = {}
        for name, parameter in module.named_parameters():
            if name not in self._held:
                continue
            fisher, old = self._held[name]
            moved = _local(parameter) - old
            pull = fisher * moved
            values[name] = self._strength / 2 * float((pull * moved).sum())
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            _local(parameter.grad).add_(pull, alpha=self._strength)
        return values


def _placed(values: torch.Tensor, name: str, parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part of a whole tensor."""
    if values.shape != parameter.shape:
        raise TrainingError(
            f"ewc.fisher is of another model: {name} has the shape {tuple(values.shape)} there, and "
            f"{tuple(parameter.shape)} here"
        )
    if isinstance(parameter, DTensor):
        values = _part(values, parameter).clone()
    return values.to(parameter.device, torch.float32)


def _part(values: torch.Tensor, parameter: DTensor) -> torch.Tensor:
    """What this rank has of a parameter that is divided along one or two axes of the mesh.

    FSDP divides what tensor parallelism has divided before, and says so by a placement with a `split_factor`, which
    torch's distribute_tensor does not take.
    """
    mesh, placements = parameter.device_mesh, parameter.placements
    place = mesh.get_coordinate()
    assert place is not None
    for axis in sorted(range(mesh.ndim), key=lambda axis: hasattr(placements[axis], "split_factor")):
        if (dim := getattr(placements[axis], "dim", None)) is not None:
            parts = values.chunk(mesh.size(axis), dim)
            values = parts[place[axis]] if place[axis] < len(parts) else values.narrow(dim, 0, 0)
    assert values.shape == parameter.to_local().shape
    return values


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local

"""Puts the values of a whole tensor into a parameter of which this process may have a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from torch import nn


@torch.no_grad()
def fill(parameter: nn.Parameter, values: torch.Tensor) -> None:
    """Copy `values`, of the parameter's whole shape; each rank takes its own part of them, without a message."""
    whole: torch.Tensor = parameter
    if isinstance(whole, DTensor):
        values = distribute_tensor(values, whole.device_mesh, whole.placements, src_data_rank=None)
    whole.copy_(values)

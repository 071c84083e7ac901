"""Tensors of a checkpoint that have values which are infinite or no numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from engine.errors import ModelError
from engine.loading.name_list import name_list
from kernels.block_weight import BlockWeight

if TYPE_CHECKING:
    from engine.loading.weights import TensorSource

_NUMBER = re.compile(r"(\d+)")
_AT_ONCE = 1 << 22  # values that are checked at a time, which bounds the memory


def first_not_finite(source: TensorSource) -> str | None:
    """The name of the first such tensor, by name with layers in their order; None if all are finite. Reads them all."""
    return next((name for name in sorted(source.names(), key=_in_order) if not is_finite(source.read(name))), None)


def check_finite(name: str, tensor: torch.Tensor | BlockWeight) -> None:
    """Refuse a tensor that is not finite.

    Raises:
        ModelError: the text names it.
    """
    if not is_finite(tensor):
        raise ModelError(f"{name_list([name])} has values that are infinite or no numbers")


def is_finite(tensor: torch.Tensor | BlockWeight) -> bool:
    """Whether all values are finite."""
    if isinstance(tensor, BlockWeight):
        num_rows = max(1, _AT_ONCE // tensor.shape[1])
        parts = (replace(tensor, rows_OB=rows_OB) for rows_OB in tensor.rows_OB.split(num_rows))
        return all(bool(part.dequantize(torch.float32).isfinite().all()) for part in parts)
    if not tensor.is_floating_point():
        return True
    return all(bool(part.float().isfinite().all()) for part in tensor.reshape(-1).split(_AT_ONCE))


def _in_order(name: str) -> list[tuple[int, str]]:
    """Digits as numbers: layers.10 comes behind layers.9."""
    return [(int(part[:9]) if part.isdecimal() else 0, part) for part in _NUMBER.split(name)]

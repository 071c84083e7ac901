"""Rotary position embedding on halves of a head, in fp32, by the engine's own tables.

Shapes: B rows, T padded tokens, N heads, D values of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from typing_extensions import override

from engine.models.rope import RotaryTable, inverse_frequencies

if TYPE_CHECKING:
    from engine.models.config import ModelConfig


class RotaryTables(NamedTuple):
    """Of positions 0 to T - 1: cos, and sin with the sign that a value's other half has in the sum; each [T, 1, D]."""

    cos_T1D: torch.Tensor
    sin_T1D: torch.Tensor


class Rotary:
    """Tables for rows of any length."""

    def __init__(self, config: ModelConfig) -> None:
        with torch.device("cpu"):  # also where a model is made without memory, on the meta device
            self._table = RotaryTable(*inverse_frequencies(config, config.max_position_embeddings, None))
        self._made: dict[tuple[int, torch.device], RotaryTables] = {}

    def tables(self, num_tokens: int, device: torch.device) -> RotaryTables:
        """The tables of the first positions, kept for the next batch of this length."""
        key = (num_tokens, device)
        if key not in self._made:
            cos_TD, sin_TD = self._table.at(list(range(num_tokens)))
            self._made = {key: RotaryTables(cos_TD[:, None].to(device), sin_TD[:, None].to(device))}
        return self._made[key]


def rotate(x_BTND: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Rotate each head by its token's position; the dtype is x's."""
    rotated: torch.Tensor = _Rotate.apply(x_BTND, *tables)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    """A rotation, whose gradient is the rotation back: nothing but the tables is kept for it."""

    @staticmethod
    @override
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide = x.float() if x.dtype.itemsize < 4 else x
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)

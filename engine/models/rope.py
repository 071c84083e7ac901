"""Rotary embedding: inverse frequencies for each kind of scaling, and tables of cos and sin.

Sources: linear (kaiokendev 2023), dynamic NTK (Emozilla 2023), YaRN (Peng et al. 2023, arXiv 2309.00071), llama3
(Meta's Llama 3.1 release). All follow transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.models.config import ModelConfig

SUPPORTED_SCALINGS = ("default", "linear", "dynamic", "yarn", "llama3")


_POSITIONS = 4096  # the least that a table grows by


class RotaryTable:
    """cos and sin of positions, in the layout of kernels.rotary; it grows to the longest sequence that there was."""

    def __init__(self, inv_freq: torch.Tensor, attention_factor: float) -> None:
        """Start from [D/2] radians per position, fp32, and a factor for cos and sin (YaRN's mscale)."""
        self._inv_freq, self._attention_factor = inv_freq, attention_factor
        self._cos_PD = self._sin_PD = inv_freq.new_empty(0, 2 * len(inv_freq))

    @property
    def num_positions(self) -> int:
        """Positions that the table has, from 0."""
        return len(self._cos_PD)

    def at(self, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin of these positions, each [T, D]."""
        if (num_positions := max(positions) + 1) > self.num_positions:
            self._grow(max(num_positions, 2 * self.num_positions))
        positions_T = torch.tensor(positions, device=self._inv_freq.device)
        return self._cos_PD.index_select(0, positions_T), self._sin_PD.index_select(0, positions_T)

    def _grow(self, num_positions: int) -> None:
        first, stop = self.num_positions, -(-num_positions // _POSITIONS) * _POSITIONS
        positions = torch.arange(first, stop, dtype=torch.float32, device=self._inv_freq.device)
        angles_PD = torch.outer(positions, self._inv_freq)
        cos, sin = angles_PD.cos() * self._attention_factor, angles_PD.sin() * self._attention_factor
        self._cos_PD = torch.cat([self._cos_PD, torch.cat([cos, cos], dim=-1)])
        self._sin_PD = torch.cat([self._sin_PD, torch.cat([-sin, sin], dim=-1)])


def inverse_frequencies(
    config: ModelConfig, num_positions: int, factors: torch.Tensor | None
) -> tuple[torch.Tensor, float]:
    """The inverse frequencies [D/2] and the attention factor.

    Dynamic scaling adapts to num_positions, the length of the longest sequence. `factors` are [D/2] divisors stored in
    a GGUF file (its form of llama3 scaling).

    Raises:
        ModelError: this kind of scaling is not supported, or a key is missing.
    """
    dim, theta, scaling = config.rotary_dim, config.rope_theta, config.rope_scaling
    max_position_embeddings = config.max_position_embeddings
    kind = scaling.get("rope_type", "default")
    try:
        if kind == "default":
            return _plain(dim, theta), 1.0
        if kind == "gguf_factors" and factors is not None:
            return _plain(dim, theta).to(factors.device) / factors, 1.0
        factor = float(scaling["factor"])
        if kind == "linear":
            return _plain(dim, theta) / factor, 1.0
        if kind == "dynamic":
            stretch = factor * max(num_positions, max_position_embeddings) / max_position_embeddings - (factor - 1)
            return _plain(dim, theta * stretch ** (dim / (dim - 2))), 1.0
        if kind == "llama3":
            return _llama3(_plain(dim, theta), scaling), 1.0
        if kind == "yarn":
            return _yarn(dim, theta, scaling, max_position_embeddings)
    except KeyError as error:
        raise ModelError(f"rope_scaling of type {kind!r} lacks {error.args[0]!r}") from None
    raise ModelError(f"rope_scaling of type {kind!r} is not supported; supported are {', '.join(SUPPORTED_SCALINGS)}")


def _plain(dim: int, theta: float) -> torch.Tensor:
    return torch.reciprocal(theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def _llama3(inv_freq: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Keep high frequencies, divide low frequencies by the factor, and interpolate in between."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    rotations = inv_freq * float(scaling["original_max_position_embeddings"]) / (2 * math.pi)  # in the original context
    keep = ((rotations - low) / (high - low)).clamp(0, 1)
    return inv_freq * (keep + (1 - keep) / float(scaling["factor"]))


def _yarn(
    dim: int, theta: float, scaling: Mapping[str, Any], max_position_embeddings: int
) -> tuple[torch.Tensor, float]:
    """Inverse frequencies by NTK-by-parts interpolation, and the factor for cos and sin."""
    factor = float(scaling["factor"])
    original = scaling.get("original_max_position_embeddings") or max_position_embeddings

    def dimension_with(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_with(scaling.get("beta_fast") or 32)
    high = dimension_with(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    inv_freq = _plain(dim, theta)
    blended = inv_freq / factor * ramp + inv_freq * (1 - ramp)

    def mscale(k: float) -> float:
        return 0.1 * k * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        if scaling.get("mscale") and scaling.get("mscale_all_dim"):
            attention_factor = mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
        else:
            attention_factor = mscale(1.0)
    return blended, float(attention_factor)

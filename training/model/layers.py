"""Small modules of DynamicMoE: norm and compression block.

Their parameters have the checkpoint's names. The residual stream is fp32 under autocast too; what a norm gives to
matrix products is in autocast's dtype, so that it is cast once and not by each product.

Shapes: B rows, T padded tokens, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from engine.models.config import ModelConfig

_LAYER_NORM_EPS = 1e-5


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products on x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.Module):
    """x / sqrt(mean(x ** 2) + eps) * weight, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self._eps).to(compute_dtype(x))


class Compression(nn.Module):
    """LayerNorm(h + decoder(GELU(encoder(h)))): the residual stream through a narrow layer and back."""

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(config.hidden_size, size)
        self.decoder = nn.Linear(size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=_LAYER_NORM_EPS)

    def forward(self, h_BTH: torch.Tensor) -> torch.Tensor:
        detour_BTH: torch.Tensor = self.decoder(F.gelu(self.encoder(h_BTH)))
        normed: torch.Tensor = self.norm(h_BTH + detour_BTH)
        return normed

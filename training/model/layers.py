"""Small modules of DynamicMoE: norm and compression block.

Their parameters have the checkpoint's names. The residual stream is fp32 under autocast too; what a norm gives to
matrix products is in autocast's dtype, so that it is cast once and not by each product.

Shapes: B rows, T padded tokens, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

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
        dtype = compute_dtype(x)
        x = x.float() if x.dtype.itemsize < 4 else x
        y: torch.Tensor = _RMSNorm.apply(x, self.weight, self._eps, dtype)  # type: ignore[no-untyped-call]
        return y


class _RMSNorm(torch.autograd.Function):
    """Keeps x and a number of each row; autograd of torch's own, which CPUs compose, keeps several tensors like x."""

    @staticmethod
    @override
    def forward(ctx: Any, x: torch.Tensor, weight_H: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_H, scale)
        y: torch.Tensor = (x * scale).mul_(weight_H).to(dtype)
        return y

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, weight_H, scale = ctx.saved_tensors
        normed, grad = x * scale, grads[0].to(x.dtype)
        grad_weight_H = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight_H
        along = torch.linalg.vecdot(grad_normed, normed).div_(x.shape[-1])[..., None]
        return grad_normed.sub_(normed.mul_(along)).mul_(scale), grad_weight_H, None, None


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

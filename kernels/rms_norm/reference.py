"""rms_norm, step by step. Contract: kernels.rms_norm."""

import torch


def rms_norm(
    x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, residual_TH: torch.Tensor | None = None
) -> torch.Tensor:
    if residual_TH is not None:
        x_TH = residual_TH.add_(x_TH)
    x_f32 = x_TH.float()
    normed = x_f32 * torch.rsqrt(x_f32.square().mean(-1, keepdim=True) + eps)
    return (normed * weight_H).to(weight_H.dtype)

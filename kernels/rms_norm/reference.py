"""rms_norm, step by step. Contract: kernels.rms_norm."""

import torch


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    x_f32 = x_TH.float()
    normed = x_f32 * torch.rsqrt(x_f32.square().mean(-1, keepdim=True) + eps)
    return (normed * weight_H).to(weight_H.dtype)


def add_rms_norm(x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    residual_TH += x_TH
    return rms_norm(residual_TH, weight_H, eps)

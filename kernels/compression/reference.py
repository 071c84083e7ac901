"""The compression block's part of a backend, step by step. Contract: kernels.compression."""

import torch

from kernels.types import Linear

EPS = 1e-5


def correct(
    x_TH: torch.Tensor, residual_TH: torch.Tensor, detour: Linear, norm: tuple[torch.Tensor, torch.Tensor]
) -> None:
    weight_H, bias_H = norm
    h_TH = residual_TH + x_TH
    h_TH = h_TH + detour(h_TH.to(x_TH.dtype))
    centred_TH = h_TH - h_TH.mean(-1, keepdim=True)
    variance_T1 = centred_TH.square().mean(-1, keepdim=True)
    residual_TH.copy_(centred_TH * torch.rsqrt(variance_T1 + EPS) * weight_H + bias_H)

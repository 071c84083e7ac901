"""rms_norm in native code, the addition fused. Contract: kernels.rms_norm."""

import torch

from kernels import native


def rms_norm(
    x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, residual_TH: torch.Tensor | None = None
) -> torch.Tensor:
    y_TH = weight_H.new_empty(x_TH.shape)
    native.library.rms_norm(x_TH, weight_H, eps, residual_TH, y_TH)
    return y_TH

"""rms_norm through torch's own operator. Contract: kernels.rms_norm."""

import torch
import torch.nn.functional as F


def rms_norm(
    x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, residual_TH: torch.Tensor | None = None
) -> torch.Tensor:
    if residual_TH is not None:
        x_TH = residual_TH.add_(x_TH)
    return F.rms_norm(x_TH, weight_H.shape, weight_H.to(x_TH.dtype), eps).to(weight_H.dtype)

"""gelu, as it is defined. Contract: kernels.gelu."""

import math

import torch


def gelu(x_TF: torch.Tensor) -> torch.Tensor:
    x_f32 = x_TF.float()
    return (x_f32 * (1 + torch.erf(x_f32 / math.sqrt(2))) / 2).to(x_TF.dtype)

"""gelu through torch's own operator, on any device. Contract: kernels.gelu."""

import torch
import torch.nn.functional as F


def gelu(x_TF: torch.Tensor) -> torch.Tensor:
    return F.gelu(x_TF)

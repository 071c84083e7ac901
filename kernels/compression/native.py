"""The compression block with native sums and layer norm. Contract: kernels.compression."""

import torch

from kernels import native
from kernels.compression.reference import EPS
from kernels.types import Linear


def correct(
    x_TH: torch.Tensor, residual_TH: torch.Tensor, detour: Linear, norm: tuple[torch.Tensor, torch.Tensor]
) -> None:
    h_TH = native.library.add_residual(x_TH, residual_TH)
    native.library.add_layer_norm(detour(h_TH), *norm, EPS, residual_TH)

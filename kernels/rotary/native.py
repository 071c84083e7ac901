"""rotary in native code, one pass. Contract: kernels.rotary."""

import torch

from kernels import native


def rotary(
    x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, y_TND: torch.Tensor | None = None
) -> torch.Tensor:
    if y_TND is None:
        y_TND = x_TND.new_empty(x_TND.shape)
    native.library.rotary(x_TND, cos_TD, sin_TD, y_TND)
    return y_TND

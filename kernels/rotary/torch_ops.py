"""rotary in three torch operators. Contract: kernels.rotary."""

import torch


def rotary(
    x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, y_TND: torch.Tensor | None = None
) -> torch.Tensor:
    swapped = x_TND.roll(x_TND.shape[-1] // 2, dims=-1)
    rotated = torch.addcmul(x_TND * cos_TD[:, None], swapped, sin_TD[:, None]).to(x_TND.dtype)
    return rotated if y_TND is None else y_TND.copy_(rotated)

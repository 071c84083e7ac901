"""rotary, step by step, in fp32. Contract: kernels.rotary."""

import torch


def rotary(
    x_TND: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, y_TND: torch.Tensor | None = None
) -> torch.Tensor:
    half = x_TND.shape[-1] // 2
    cos, sin = cos_TD[:, None, half:], sin_TD[:, None, half:]
    low, high = x_TND[..., :half].float(), x_TND[..., half:].float()
    rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x_TND.dtype)
    return rotated if y_TND is None else y_TND.copy_(rotated)

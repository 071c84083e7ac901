"""draw in native code. Contract: kernels.draw."""

import torch

from kernels import native


def draw(logits_RV: torch.Tensor, temperatures: list[float], uniforms: list[float]) -> list[int]:
    return native.library.draw(logits_RV, temperatures, uniforms)

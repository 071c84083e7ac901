"""draw, row by row, in fp64. Contract: kernels.draw."""

import torch


def draw(logits_RV: torch.Tensor, temperatures: list[float], uniforms: list[float]) -> list[int]:
    tokens = []
    for logits_V, temperature, uniform in zip(logits_RV.double(), temperatures, uniforms, strict=True):
        if not logits_V.isfinite().all():
            tokens.append(-1)
        elif temperature == 0:
            tokens.append(int(logits_V.argmax()))
        else:
            running_V = ((logits_V - logits_V.max()) / temperature).softmax(-1).cumsum(-1)
            tokens.append(int((running_V > uniform * running_V[-1]).int().argmax()))
    return tokens

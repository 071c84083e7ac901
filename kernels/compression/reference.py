"""The compression block, step by step. Contract: kernels.compression."""

from collections.abc import Callable

import torch

from kernels.types import Compression, Layer, Projection

EPS = 1e-5


def compression(
    projection: Projection,
    gelu: Callable[[torch.Tensor], torch.Tensor],
    encoder: Layer,
    decoder: Layer,
    norm: tuple[torch.Tensor, torch.Tensor],
) -> Compression:
    encode, decode = projection(*encoder), projection(*decoder, torch.float32)
    weight_H, bias_H = norm

    def apply(x_TH: torch.Tensor, residual_TH: torch.Tensor) -> None:
        h_TH = residual_TH + x_TH
        h_TH = h_TH + decode(gelu(encode(h_TH.to(x_TH.dtype))))
        centred_TH = h_TH - h_TH.mean(-1, keepdim=True)
        variance_T1 = centred_TH.square().mean(-1, keepdim=True)
        residual_TH.copy_(centred_TH * torch.rsqrt(variance_T1 + EPS) * weight_H + bias_H)

    return apply

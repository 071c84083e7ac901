"""The compression block with torch's own layer norm, on any device. Contract: kernels.compression."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.compression.reference import EPS
from kernels.types import Compression, Layer, Projection


def compression(
    projection: Projection,
    gelu: Callable[[torch.Tensor], torch.Tensor],
    encoder: Layer,
    decoder: Layer,
    norm: tuple[torch.Tensor, torch.Tensor],
) -> Compression:
    encode, decode = projection(*encoder), projection(*decoder, torch.float32)

    def apply(x_TH: torch.Tensor, residual_TH: torch.Tensor) -> None:
        residual_TH += x_TH
        residual_TH += decode(gelu(encode(residual_TH.to(x_TH.dtype))))
        residual_TH.copy_(F.layer_norm(residual_TH, norm[0].shape, *norm, EPS))

    return apply

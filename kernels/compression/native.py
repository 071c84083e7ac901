"""The compression block of native products, sums and layer norm. Contract: kernels.compression."""

from collections.abc import Callable

import torch

from kernels import native
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
        h_TH = native.library.add_residual(x_TH, residual_TH)
        native.library.add_layer_norm(decode(gelu(encode(h_TH))), *norm, EPS, residual_TH)

    return apply

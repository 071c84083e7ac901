"""A linear layer of packed blocks, on their values in fp64. Contract: kernels.block_linear."""

import torch

from kernels.block_weight import BlockWeight, MixedWeight, quantize_groups
from kernels.quantized_weight import Input
from kernels.types import Linear


def block_linear(
    weight: BlockWeight | MixedWeight, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
) -> Linear:
    parts = weight.parts if isinstance(weight, MixedWeight) else (weight,)

    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        y_TO = torch.cat([_multiply(part, x_TI) for part in parts], 1)
        return (y_TO if bias_O is None else y_TO + bias_O.double()).to(out_dtype or x_TI.dtype)

    return apply


def _multiply(weight: BlockWeight, x_TI: torch.Tensor) -> torch.Tensor:
    used_TI = x_TI.double()
    if weight.input is Input.DYNAMIC:
        x_q, scale = quantize_groups(x_TI, weight.format.group)
        used_TI = (x_q.double() * scale.double()).flatten(1)[:, : weight.in_size]
    return used_TI @ weight.dequantize(torch.float32).double().T

"""An int8 linear layer in integers, term by term. Contract: kernels.linear_int8."""

import torch

from kernels.quantized_weight import Input, QuantizedWeight, StaticInput, quantize_rows, quantize_static
from kernels.types import Linear


def linear_int8(weight: QuantizedWeight, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
    values_OI = weight.values_OI.long()

    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        if weight.input is Input.FLOAT:
            y_TO = (x_TI.double() @ values_OI.T.double()).float()
        else:
            if isinstance(weight.input, StaticInput):
                x_q = quantize_static(x_TI, weight.input)
                scale, zero = torch.tensor([weight.input.scale]), torch.tensor([weight.input.zero_point])
            else:
                x_q, scale, zero = quantize_rows(x_TI, weight.rotation)
            y_TO = scale * (x_q.long() @ values_OI.T - zero * values_OI.sum(1)).float()
        y_TO = y_TO * weight.scale_O
        return (y_TO if bias_O is None else y_TO + bias_O.float()).to(out_dtype or x_TI.dtype)

    return apply

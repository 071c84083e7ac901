"""An int8 linear layer in native code: rows made uint8 and multiplied in one call. Contract: kernels.linear_int8."""

import torch

from kernels import native
from kernels.linear.native import allocating
from kernels.quantized_weight import Input, QuantizedWeight
from kernels.types import Linear


def linear_int8(
    weight: QuantizedWeight, bias_O: torch.Tensor | None, dtype: torch.dtype, out_dtype: torch.dtype | None = None
) -> Linear:
    """For x of one dtype; y has the same, unless out_dtype is fp32."""
    layer = native.library.Int8Linear(
        weight.values_OI.contiguous(),
        weight.scale_O,
        None if bias_O is None else bias_O.float(),
        dtype if weight.input is Input.FLOAT else torch.uint8,
        *weight.grid,
    )
    return allocating(layer.forward, weight.shape[0], out_dtype or dtype)

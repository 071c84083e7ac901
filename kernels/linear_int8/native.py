"""An int8 linear layer in native code: rows made uint8 and multiplied in one call. Contract: kernels.linear_int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels import native
from kernels.linear_int8.weight import Input, QuantizedWeight

if TYPE_CHECKING:
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
    out_size, dtype = weight.shape[0], out_dtype or dtype

    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        y_TO = torch.empty(len(x_TI), out_size, dtype=dtype)
        layer.forward(x_TI, y_TO)
        return y_TO

    return apply

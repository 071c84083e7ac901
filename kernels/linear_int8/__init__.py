"""A linear layer whose weight is int8, and whose input may be too: one scale for each output channel.

    linear_int8(weight: QuantizedWeight, bias_O or None, out_dtype=None) -> apply
    apply(x_TI) -> y_TO, of out_dtype or else x's dtype

    static, dynamic   y = scale_x * scale_O * ((sum over i of x_q w_q) - zero_point * (sum over i of w_q)) + bias
                      x_q = clamp(round(x * (1 / scale_x)) + zero_point, 0, 255), halves to even, in fp32;
                      the sums are exact integers (int32 holds them up to in_size 66,000)
    weight only       y = scale_O * (sum over i of x w_q) + bias

Where a scale and zero point come from, see `Input`. A row's result depends on no other row. A dynamic row with a NaN
gives NaN, and a row of zeros gives the bias. `linear_int8` may keep the weight in a layout of its own, so the caller
drops it.

Shapes: T tokens, I in_size, O out_size.
"""

from kernels.linear_int8 import native, reference, torch_ops
from kernels.linear_int8.weight import Input, QuantizedWeight, StaticInput, quantize_rows, quantize_weight, stack

__all__ = [
    "Input",
    "QuantizedWeight",
    "StaticInput",
    "native",
    "quantize_rows",
    "quantize_weight",
    "reference",
    "stack",
    "torch_ops",
]

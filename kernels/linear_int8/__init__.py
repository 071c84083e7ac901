"""A linear layer with an int8 weight, one scale for each output channel, and an input in 8 bits or floats.

    linear_int8(weight: QuantizedWeight, bias_O or None, out_dtype=None) -> apply
    apply(x_TI) -> y_TO                                         y has out_dtype, by default x's dtype

    static, dynamic   y = scale_x * scale_O * ((sum over i of x_q w_q) - zero_point * (sum over i of w_q)) + bias
                      x_q = clamp(round(x * (1 / scale_x)) + zero_point, 0, 255), halves to even, in fp32;
                      the sums are exact (int32 suffices up to in_size 66,000)
    weight only       y = scale_O * (sum over i of x w_q) + bias

The x of a dynamic input is rotated before (kernels.hadamard), if the weight is.

`Input` and `StaticInput` define scale and zero point. Rows are independent. A dynamic row with a NaN gives NaN, a row
of zeros gives the bias. `linear_int8` may copy the weight into another layout, so the caller should not keep it.

Shapes: T tokens, I in_size, O out_size.
"""

from kernels.linear_int8 import reference, torch_ops
from kernels.quantized_weight import (
    Input,
    QuantizedWeight,
    StaticInput,
    quantize_for_dynamic_inputs,
    quantize_rows,
    quantize_weight,
    stack,
)

__all__ = [
    "Input",
    "QuantizedWeight",
    "StaticInput",
    "quantize_for_dynamic_inputs",
    "quantize_rows",
    "quantize_weight",
    "reference",
    "stack",
    "torch_ops",
]

"""Round a weight in floats to packed blocks, each with the scale that loses least.

    round_to_blocks(weight_OI, format, importance_I=None, input_=Input.DYNAMIC) -> BlockWeight

`format` is "q4_0" or "q8_0" (kernels.block_weight): 32 values share a scale. For q4_0 several scales are tried, from
the largest value (in magnitude) at -7.1 to the largest at -8.9; for each, values are rounded, the scale that fits these
codes best is computed by least squares, and the best is taken. `importance_I` weighs the squared errors of the inputs.
A q8_0 block's largest value becomes 127 or -127. Scales are rounded to fp16 before values are rounded for good.

Raises:
    ValueError: a scale is beyond fp16 or not a number.

Shapes: O rows, I values in a row.
"""

from kernels.round_to_blocks import native, reference
from kernels.round_to_blocks.native import round_to_blocks

__all__ = ["native", "reference", "round_to_blocks"]

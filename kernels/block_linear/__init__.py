"""A linear layer with a weight in packed blocks (kernels.block_weight), which stays packed in memory.

    block_linear(weight: BlockWeight | MixedWeight, bias_O or None, out_dtype=None) -> apply
    apply(x_TI) -> y_TO                                         y has out_dtype, by default x's dtype

    float     y = (sum over i of x w) + bias                    w: the blocks' values, rounded at most to bf16
    dynamic   y = (sum over groups g of scale_g * (sum over i in g of x_q w)) + bias
              x_q = round(x * (127 / max)), halves to even, and scale_g = max / 127, with the largest |x| of the group;
              groups have weight.format.group inputs. Of w = d q + m with whole q, the sums of q x_q and x_q are exact.

Rows are independent. A row with a NaN or an infinity gives NaN, a row of zeros gives the bias. Torch's operators, which
gain nothing by int8, compute on the expanded weight with inputs in floats.

Shapes: T tokens, I in_size, O out_size.
"""

from kernels.block_linear import native, reference

__all__ = ["native", "reference"]

"""A linear layer; its weight is packed once, at load.

    linear(weight_OI, bias_O or None, out_dtype=None) -> apply
    apply(x_TI) -> y_TO                                         y = x @ weight^T + bias

y has out_dtype, by default x's dtype. The product is computed in the weight's dtype: x's dtype or fp32. `linear` may
copy the weight into another layout, so the caller should not keep weight_OI.

Shapes: T tokens, I values in, O values out.
"""

from kernels.linear import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

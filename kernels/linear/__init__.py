"""A linear layer whose weight is packed once, when the model is loaded.

    linear(weight_OI, bias_O or None, out_dtype=None) -> apply
    apply(x_TI) -> y_TO                                         y = x @ weight^T + bias

y has out_dtype, or else x's dtype. The product is computed in the weight's dtype, which is x's or fp32. `linear` may
keep the weight in a layout of its own, so the caller drops weight_OI afterwards.

Shapes: T tokens, I values in, O values out.
"""

from kernels.linear import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

"""A linear layer whose weight is packed once, when the model is loaded.

    pack(weight_OI, bias_O or None) -> apply;   apply(x_TI) -> y_TO        y = x @ weight^T + bias

    pack_f32(weight_OI, bias_O or None) -> apply             the same with a weight and y in fp32, whatever x is

`pack` may keep the weight in a layout of its own, so the caller drops weight_OI afterwards.
"""

from kernels.linear import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

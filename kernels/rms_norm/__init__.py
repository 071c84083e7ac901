"""Root-mean-square normalisation (Zhang and Sennrich 2019), with the residual addition that precedes it in a decoder.

    rms_norm(x_TH, weight_H, eps, residual_TH=None) -> y_TH        y = x / sqrt(mean(x^2) + eps) * weight

With a residual stream, residual += x comes first, in place, and y is made of the residual stream.

The residual stream is fp32, whatever the dtype of x: what many layers add up is not rounded at each. x may be
rows of it too. All in fp32; y has the weight's dtype. T tokens, H values each.
"""

from kernels.rms_norm import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

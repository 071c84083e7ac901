"""Root-mean-square normalisation (Zhang and Sennrich 2019), with the residual addition that precedes it in a decoder.

    rms_norm(x_TH, weight_H, eps) -> y_TH                y = x / sqrt(mean(x^2) + eps) * weight
    add_rms_norm(x_TH, residual_TH, weight_H, eps)       residual += x in place; returns rms_norm(residual)

The residual stream is fp32, whatever the dtype of x: what many layers add up is not rounded at each. rms_norm takes
rows of it too. All in fp32; y has the weight's dtype. T tokens, H values each.
"""

from kernels.rms_norm import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

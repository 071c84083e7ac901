"""Root-mean-square normalisation (Zhang and Sennrich 2019), with the residual addition that precedes it in a decoder.

    rms_norm(x_TH, weight_H, eps, residual_TH=None) -> y_TH        y = x / sqrt(mean(x^2) + eps) * weight

With residual_TH, residual += x is computed first, in place, and y is the norm of the residual stream.

The residual stream is always fp32, so that no layer rounds the sum. x may be rows of the residual stream too. The
computation is in fp32; y has the weight's dtype.

Shapes: T tokens, H values each.
"""

from kernels.rms_norm import reference, torch_ops

__all__ = ["reference", "torch_ops"]

"""The Gaussian error linear unit (Hendrycks and Gimpel 2016), exact: by erf, not by its approximation with tanh.

    gelu(x_TF) -> y_TF        y = x * (1 + erf(x / sqrt(2))) / 2, in x's dtype; computed in fp32, to 2e-6

Shapes: T tokens, F values each.
"""

from kernels.gelu import reference, torch_ops

__all__ = ["reference", "torch_ops"]

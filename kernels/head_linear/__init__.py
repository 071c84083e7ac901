"""A separate linear layer for each head, as latent attention needs before and after it.

    head_linear(weight_NKM) -> apply               once, at load
    apply(x_TNK, out_TNM, first=0)                 out[t, n] = x[t, n] @ weight[first + n]

x and out may have fewer heads than the weight: its heads from `first` on. x and out may be views whose last dimension
is contiguous; out has x's dtype. Sums are fp32.

Shapes: T tokens, N heads, K values in, M values out.
"""

from kernels.head_linear import reference, torch_ops

__all__ = ["reference", "torch_ops"]

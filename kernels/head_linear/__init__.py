"""A linear layer of its own for each head, as latent attention has before and after it.

    head_linear(weight_NKM) -> apply               once, when a model is loaded
    apply(x_TNK, out_TNM, first=0)                 out[t, n] = x[t, n] @ weight[first + n], in place

T tokens, N heads (x and out may have some of the weight's, from `first` on), K values in, M out. x and out may be views
whose last dimension is packed; out has x's dtype. Sums are fp32.
"""

from kernels.head_linear import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

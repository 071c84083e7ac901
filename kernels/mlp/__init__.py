"""A feed-forward block: down(silu(gate x) * up x).

    mlp(projection, silu_mul, gate_up, down) -> apply    layers are (weight, bias or None); gate_up [2F, H], gate first
    apply(x_TH, onto_TH=None) -> y_TH                    if onto_TH is given, the result is added to it in place

`projection` and `silu_mul` are operations of kernels.ops. Weights are tensors or QuantizedWeights. The native version
is kernels.grouped_mlp with a single expert, and does not round between the products.

Shapes: T tokens, H hidden, F intermediate_size.
"""

from kernels.mlp import reference

__all__ = ["reference"]

"""A feed-forward block: down(silu(gate x) * up x).

    mlp(projection, silu_mul, gate_up, down) -> apply    each a (weight, bias or None); gate_up [2F, H], gate first
    apply(x_TH, onto_TH=None) -> y_TH                    onto_TH, if given, plus the block's result, in place

`projection` and `silu_mul` are those of kernels.ops: weights are tensors or QuantizedWeights. The version in native
code (kernels.grouped_mlp, whose one expert it is) does not round between the products.

Shapes: T tokens, H hidden, F intermediate_size.
"""

from kernels.mlp import native, reference

__all__ = ["native", "reference"]

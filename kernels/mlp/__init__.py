"""A feed-forward block: down(silu(gate x) * up x).

    pack(linear, silu_mul, gate_up, down) -> apply       each a (weight, bias or None); gate_up [2F, H], gate first
    apply(x_TH, onto_TH=None) -> y_TH                    onto_TH, if given, plus the block's result, in place

`linear` and `silu_mul` are the kernel table's, `linear` its pack_linear: weights are tensors or QuantizedWeights. The
version in native code (kernels.grouped_mlp, whose one expert it is) does not round between the products.

Shapes: T tokens, H hidden, F intermediate_size.
"""

from kernels.mlp import native, torch_ops

__all__ = ["native", "torch_ops"]

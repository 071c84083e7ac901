"""The routed experts of a mixture of experts: each token goes through its own K experts, computed expert by expert.

    grouped_mlp(projection, silu_mul, experts) -> apply     experts: (gate_up [2F, H], gate first; down [H, F]) of each
    apply(x_TH, ids_TK, weights_TK) -> y_TH                 y[t] = sum over k of weights[t, k] * expert[ids[t, k]](x[t])
                                                            expert(x) = down(silu(gate x) * up x)

`projection` and `silu_mul` are operations of kernels.ops. Weights are tensors or QuantizedWeights
(kernels.linear_int8). weights_TK is fp32, and the sum is computed in fp32. Cost: arithmetic for T * K rows; only the
weights of chosen experts are read.

Shapes: T tokens, H hidden, F moe_intermediate_size, K num_experts_per_tok.
"""

from kernels.grouped_mlp import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

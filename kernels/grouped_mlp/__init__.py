"""The routed experts of a mixture: each token through its own few MLPs, computed expert by expert.

    grouped_mlp(projection, silu_mul, experts) -> apply     of each expert (gate_up: [2F, H], gate first; down: [H, F])
    apply(x_TH, ids_TK, weights_TK) -> y_TH                 y = sum over k of weight * expert id of x, and
                                                            an expert is down(silu(gate x) * up x)

`projection` and `silu_mul` are those of kernels.ops: each of an expert's two weights is a tensor or a QuantizedWeight
(kernels.linear_int8). weights_TK are fp32 and the sum is taken in fp32. Cost: O(T * K) rows of arithmetic and the
weights of the experts that some token chose; experts that none chose cost nothing.

Shapes: T tokens, H hidden, F moe_intermediate_size, K num_experts_per_tok.
"""

from kernels.grouped_mlp import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

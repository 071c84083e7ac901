"""Causal attention of one sequence over contiguous keys and values; each query head has its own keys and values.

    causal_attention(q_QNX, k_LNX, v_LNV, scale) -> o_QNV       the queries are the last Q of L positions

Each query sees the positions up to its own. All tensors may be views whose last dimension is contiguous. Cost:
O(Q * L * N * (X + V)).

Shapes: Q queries, L positions, N heads, X key dimension, V value dimension.
"""

from kernels.causal_attention import reference, torch_ops

__all__ = ["reference", "torch_ops"]

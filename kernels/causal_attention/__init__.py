"""Causal attention of one sequence over keys and values that lie in a row, each head with its own.

    causal_attention(q_QNX, k_LNX, v_LNV, scale) -> o_QNV       the last Q of L positions over those up to their own

Q queries, L positions, N heads, X values of a key, V of a value. All may be views whose last dimension is packed. Cost:
O(Q * L * N * (X + V)).
"""

from kernels.causal_attention import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

"""The gated activation of a decoder's MLP (SwiGLU, Shazeer 2020).

    silu_mul(gate_up_TF2) -> y_TF        y = silu(gate) * up; gate_up = [gate, up]

Shapes: T tokens, F intermediate_size.
"""

from kernels.silu_mul import reference, torch_ops

__all__ = ["reference", "torch_ops"]

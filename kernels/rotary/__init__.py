"""Rotary position embedding (Su et al. 2021), half-split as in Llama: dimensions i and i + D/2 rotate together.

    rotary(x_TND, cos_TD, sin_TD, y_TND=None) -> y_TND      written into y_TND, if given
        y[..., :D/2] = x[..., :D/2] * cos - x[..., D/2:] * sin
        y[..., D/2:] = x[..., D/2:] * cos + x[..., :D/2] * sin

cos_TD is [cos, cos] and sin_TD is [-sin, sin] of each token's D/2 angles, in fp32, so that y = x * cos +
swap_halves(x) * sin. y has x's dtype.

Shapes: T tokens, N heads, D head dimension.
"""

from kernels.rotary import reference, torch_ops

__all__ = ["reference", "torch_ops"]

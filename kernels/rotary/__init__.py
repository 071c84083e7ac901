"""Rotary position embedding (Su et al. 2021), half-split as in Llama: dimension i turns with dimension i + D/2.

    rotary(x_TND, cos_TD, sin_TD) -> y_TND              or into y_TND, where that is given too
        y[..., :D/2] = x[..., :D/2] * cos - x[..., D/2:] * sin
        y[..., D/2:] = x[..., D/2:] * cos + x[..., :D/2] * sin

T tokens, N heads, D the head dimension. cos_TD and sin_TD (fp32) hold each token's D/2 values; cos twice over,
sin first negated and then as it is, so that y = x * cos + swap_halves(x) * sin. y has x's dtype.
"""

from kernels.rotary import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

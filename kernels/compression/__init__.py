"""DynamicMoE's compression block: a narrow detour through which the residual stream is corrected, then layer norm.

    correct(x_TH, residual_TH, detour, norm) -> None    residual, fp32, is replaced in place; norm is (weight_H, bias_H)

    h = residual + x;  residual = layer_norm(h + detour(h))

The detour is decoder(GELU(encoder(h))); `Ops.compression` makes it of operations of kernels.ops, encoder [C, H] and
decoder [H, C]. h is rounded to x's dtype on its way into the encoder alone. The decoder's output, the sum and the layer
norm (eps 1e-5, Ba et al. 2016) are fp32.

Shapes: T tokens, H hidden, C compressed.
"""

from kernels.compression import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

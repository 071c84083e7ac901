"""DynamicMoE's compression block: a narrow detour through which the residual stream is corrected, then layer norm.

    compression(projection, gelu, encoder, decoder, norm) -> apply    layers are (weight, bias); encoder [C, H], decoder
                                                                      [H, C]; norm is (weight_H, bias_H), both fp32
    apply(x_TH, residual_TH) -> None                                  residual, fp32, is replaced in place:

    h = residual + x;  residual = layer_norm(h + decoder(GELU(encoder(h))))

`projection` and `gelu` are operations of kernels.ops. h is rounded to x's dtype on its way into the encoder alone. The
decoder's output, the sum and the layer norm (eps 1e-5, Ba et al. 2016) are fp32.

Shapes: T tokens, H hidden, C compressed.
"""

from kernels.compression import native, reference, torch_ops

__all__ = ["native", "reference", "torch_ops"]

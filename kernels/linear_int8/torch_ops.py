"""An int8 linear layer through torch: oneDNN's u8 x s8 product where it is exact. Contract: kernels.linear_int8.

Without VNNI, oneDNN uses vpmaddubsw, which adds two products in 16 bits and saturates. On a GPU oneDNN does not run. In
both cases the integers are multiplied in fp32, which is slow, and rounds sums above 2^24.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.quantized_weight import Input, QuantizedWeight, StaticInput, quantize_rows, quantize_static
from kernels.types import Linear

_FEW_ROWS = 8  # up to here torch's int8 product is faster than a product with the weight dequantized to bf16


def linear_int8(weight: QuantizedWeight, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None) -> Linear:
    apply = _pack(weight, bias_O)
    return apply if out_dtype is None else lambda x_TI: apply(x_TI).to(out_dtype)


def _pack(weight: QuantizedWeight, bias_O: torch.Tensor | None) -> Linear:
    if weight.input is Input.FLOAT:
        return _weight_only(weight, bias_O)
    scale_O = weight.scale_O.contiguous()
    bias = None if bias_O is None else bias_O.float()
    if isinstance(weight.input, StaticInput):
        return _static(_product(weight.values_OI, scale_O * weight.input.scale, bias), weight.input)
    # The zero point of each row is subtracted after the product. The product subtracts 128, which keeps sums small:
    # oneDNN returns them as fp32, exact up to 2^24.
    sums_O = weight.values_OI.sum(1, dtype=torch.int32).float() * scale_O
    product = _product(weight.values_OI, scale_O, None)

    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        x_q, scale_T1, zero_T1 = quantize_rows(x_TI, weight.rotation)
        y_TO = product(x_q, 128, torch.float32)
        y_TO = y_TO.addcmul_(zero_T1 - 128, sums_O, value=-1).mul_(scale_T1)
        return (y_TO if bias is None else y_TO.add_(bias)).to(x_TI.dtype)

    return apply


def has_exact_product(device: torch.device) -> bool:
    """Whether oneDNN's int8 product runs here and does not saturate."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.cpu._is_vnni_supported()
        and hasattr(torch.ops.onednn, "qlinear_prepack")
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )


def _static(product: Callable[[torch.Tensor, int, torch.dtype], torch.Tensor], grid: StaticInput) -> Linear:
    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        return product(quantize_static(x_TI, grid), grid.zero_point, x_TI.dtype)

    return apply


def _product(
    values_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None
) -> Callable[[torch.Tensor, int, torch.dtype], torch.Tensor]:
    """product(x_q, zero_point, dtype) = ((x_q - zero_point) @ values^T) * scale + bias."""
    if not has_exact_product(values_OI.device):

        def product(x_q: torch.Tensor, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
            y_TO = F.linear(x_q.float() - zero_point, values_OI.float()) * scale_O
            return (y_TO if bias_O is None else y_TO + bias_O).to(dtype)

        return product
    packed = torch.ops.onednn.qlinear_prepack(values_OI.contiguous(), None)
    no_zeros = torch.zeros_like(scale_O, dtype=torch.int32)
    linear = torch.ops.onednn.qlinear_pointwise

    def onednn_product(x_q: torch.Tensor, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
        out_dtype = torch.float32 if dtype is torch.float16 else dtype  # oneDNN has no fp16 output here
        y_TO: torch.Tensor = linear(
            x_q, 1.0, zero_point, packed, scale_O, no_zeros, bias_O, 1.0, 0, out_dtype, "none", [], ""
        )
        return y_TO.to(dtype)

    return onednn_product


def _weight_only(weight: QuantizedWeight, bias_O: torch.Tensor | None) -> Linear:
    values_OI, scale_O = weight.values_OI.contiguous(), weight.scale_O
    ones_O = torch.ones_like(scale_O, dtype=torch.bfloat16)
    # torch's product of bf16 and int8 reads past the end of a row whose length is not a multiple of its vectors.
    is_whole = values_OI.device.type == "cpu" and values_OI.shape[0] % 16 == 0 and values_OI.shape[1] % 64 == 0

    def apply(x_TI: torch.Tensor) -> torch.Tensor:
        if x_TI.dtype is not torch.bfloat16:
            return F.linear(x_TI, weight.dequantize(x_TI.dtype), None if bias_O is None else bias_O.to(x_TI.dtype))
        if is_whole and len(x_TI) <= _FEW_ROWS:
            y_TO = torch._weight_int8pack_mm(x_TI, values_OI, ones_O)
        else:
            y_TO = F.linear(x_TI, values_OI.bfloat16())  # int8 is exact in bf16
        y_TO = y_TO.float() * scale_O
        return (y_TO if bias_O is None else y_TO + bias_O.float()).to(x_TI.dtype)

    return apply

"""Rounding as matrix operations. Contract: kernels.round_to_blocks."""

import torch
import torch.nn.functional as F

from kernels.block_weight import FORMATS, BlockWeight
from kernels.quantized_weight import Input

_SIZE = 32  # values in a block
_STEPS = range(-9, 10)  # tenths of a code


def round_to_blocks(
    weight_OI: torch.Tensor,
    format_name: str,
    importance_I: torch.Tensor | None = None,
    input_: Input = Input.DYNAMIC,
) -> BlockWeight:
    out_size, in_size = weight_OI.shape
    padding = (0, -in_size % _SIZE)
    x_OBV = F.pad(weight_OI.float(), padding).unflatten(1, (-1, _SIZE))
    if format_name == "q4_0":
        weights = torch.ones(in_size) if importance_I is None else importance_I.float()
        scale_OB1 = _search(x_OBV, F.pad(weights, padding).unflatten(0, (-1, _SIZE)))
    else:
        assert format_name == "q8_0", format_name
        scale_OB1 = x_OBV.abs().amax(2, keepdim=True) / 127
    scale_OB1 = (scale_OB1 + (x_OBV * 0).sum(2, keepdim=True)).half()  # NaN where a value is not finite
    if not scale_OB1.isfinite().all():
        raise ValueError("a scale is beyond fp16 or not a number")
    q_OBV = (x_OBV * _inverse(scale_OB1.float())).round()
    if format_name == "q4_0":
        codes = (q_OBV.clamp(-8, 7) + 8).to(torch.uint8)
        codes = codes[..., : _SIZE // 2] | codes[..., _SIZE // 2 :] << 4
    else:
        codes = q_OBV.clamp(-127, 127).to(torch.int8).view(torch.uint8)
    rows_OB = torch.cat([scale_OB1.view(torch.uint8), codes], 2).view(out_size, -1)
    return BlockWeight(rows_OB, FORMATS[format_name], in_size, input_)


def _search(x_OBV: torch.Tensor, weights_BV: torch.Tensor) -> torch.Tensor:
    """The scale [O, B, 1] of each block's 4-bit codes."""
    largest = x_OBV.gather(2, x_OBV.abs().argmax(2, keepdim=True))
    best, scale = torch.zeros_like(largest), torch.zeros_like(largest)
    for step in _STEPS:
        q_OBV = (x_OBV * ((-8 + 0.1 * step) * _inverse(largest))).round().clamp(-8, 7)
        fit = (weights_BV * x_OBV * q_OBV).sum(2, keepdim=True)
        power = (weights_BV * q_OBV * q_OBV).sum(2, keepdim=True)
        gain = torch.where(power > 0, fit * fit / power, 0.0)
        scale = torch.where(gain > best, fit / power, scale)
        best = torch.maximum(gain, best)
    return scale


def _inverse(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x == 0, 0.0, 1 / x)

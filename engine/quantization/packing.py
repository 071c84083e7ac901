"""Weights in blocks as compressed-tensors stores them: format `pack-quantized`, groups of 32, symmetric. Written only.

    weight_packed   int32 [O, I * bits / 32]: value i of a row, plus 2^(bits - 1), from bit i * bits on
    weight_scale    bf16 [O, I / 32]
    weight_shape    int64 [2]: O, I

Shapes: O rows, I inputs, G groups of 32 inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from engine.models import compressed_tensors
from engine.models.packed_scheme import INT4
from kernels.block_weight import FORMATS, BlockWeight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kernels.quantized_weight import Input

GROUP = 32
_BITS = {"q4_0": 4, "q8_0": 8}


def storable(scale: torch.Tensor) -> torch.Tensor:
    """Scales that fp16 (in a block) and bf16 (in a checkpoint) both hold, in fp32.

    Raises:
        ValueError: a scale is beyond fp16 or not a number.
    """
    made = scale.half().bfloat16().float()
    if not made.isfinite().all():
        raise ValueError("a scale is beyond fp16 or not a number")
    return made


def to_blocks(codes_OI: torch.Tensor, scale_OG: torch.Tensor, bits: int, input_: Input) -> BlockWeight:
    """Whole numbers in floats, -2^(bits - 1) or more and less than 2^(bits - 1), and storable scales, as a weight."""
    scale_OG1 = scale_OG.contiguous().half()[..., None].view(torch.uint8)
    codes_OGV = codes_OI.unflatten(1, (-1, GROUP))
    if bits == 4:
        unsigned_OGV = (codes_OGV + 8).to(torch.uint8)
        packed = unsigned_OGV[..., : GROUP // 2] | unsigned_OGV[..., GROUP // 2 :] << 4
    else:
        packed = codes_OGV.to(torch.int8).view(torch.uint8)
    rows_OB = torch.cat([scale_OG1, packed], 2).flatten(1)
    return BlockWeight(rows_OB, FORMATS[f"q{bits}_0"], codes_OI.shape[1], input_)


def pack(layer: str, weight: BlockWeight) -> Iterator[tuple[str, torch.Tensor]]:
    """A layer's tensors by their names; the format is q4_0 or q8_0, scales are storable."""
    bits = _BITS[weight.format.name]
    blocks = weight.rows_OB.unflatten(1, (-1, weight.format.bytes))
    scale_OG, codes = blocks[..., :2].contiguous().view(torch.float16)[..., 0], blocks[..., 2:]
    if bits == 4:
        codes_OI = torch.cat([codes & 15, codes >> 4], 2).flatten(1)
        packed_OB = codes_OI[:, ::2] | codes_OI[:, 1::2] << 4
    else:
        packed_OB = (codes ^ 128).flatten(1)  # plus 128, without a carry
    yield f"{layer}.weight_packed", packed_OB.contiguous().view(torch.int32)
    yield f"{layer}.weight_scale", scale_OG.bfloat16()
    yield f"{layer}.weight_shape", torch.tensor(weight.shape)


def to_config(targets: Mapping[int, Sequence[str]], ignore: Sequence[str], *, int8_inputs: bool) -> dict[str, Any]:
    """quantization_config of config.json: the layers by their bits, and those that are not quantised."""
    numbers = {"type": "int", "symmetric": True}
    weights = {**numbers, "strategy": "group", "group_size": GROUP, "dynamic": False}
    inputs = {**numbers, "num_bits": 8, "strategy": "token", "dynamic": True} if int8_inputs else None
    groups = [(layers, {"num_bits": bits, **weights}, inputs) for bits, layers in sorted(targets.items()) if layers]
    return compressed_tensors.to_config(INT4, groups, ignore)

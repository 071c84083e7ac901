"""Weights in blocks of random bytes, scaled to be of a wanted size."""

from __future__ import annotations

import torch

from kernels.block_weight import FORMATS, BlockWeight
from kernels.quantized_weight import Input

HALVES = {  # name -> where a block's fp16 scales are, and by how much they differ, so that values have a mean of 0
    "q4_0": {0: 1}, "q4_1": {0: 1, 2: -7.5}, "q5_0": {0: 1}, "q5_1": {0: 1, 2: -15.5}, "q8_0": {0: 1},
    "q4_k": {0: 1, 2: 7.5}, "q5_k": {0: 1, 2: 15.5}, "q6_k": {208: 1},
    "int4_32": {0: 1}, "int4_64": {0: 1}, "int4_128": {0: 1},
}  # fmt: skip


def random_weight(name: str, num_out: int, in_size: int, input_: Input = Input.DYNAMIC, seed: int = 0) -> BlockWeight:
    """Every bit of the codes and of their inner scales is random; values have a size of about 1 / sqrt(in_size)."""
    form, generator = FORMATS[name], torch.Generator().manual_seed(seed)
    input_ = input_ if form.group else Input.FLOAT
    num_blocks = form.num_blocks(in_size)
    blocks = torch.randint(0, 256, (num_out, num_blocks, form.bytes), generator=generator, dtype=torch.uint8)
    factors = (0.5 + torch.rand(num_out, num_blocks, 1, generator=generator)) * in_size**-0.5
    if name == "mxfp4":
        blocks[..., :1] = torch.randint(120, 126, (num_out, num_blocks, 1), generator=generator)
    elif name == "fp8_128":
        codes = blocks[..., 4:]
        codes[(codes & 127) == 127] = 0  # NaN
        blocks[..., :4] = (factors / 100).view(torch.uint8)
    else:
        for place, factor in HALVES[name].items():
            blocks[..., place : place + 2] = torch.tensor([factor], dtype=torch.float16).view(torch.uint8)
        if name.startswith("int4"):
            blocks[..., 2] &= 15
        size = form.dequantize(blocks).std()
        for place, factor in HALVES[name].items():
            blocks[..., place : place + 2] = (factors * factor / size).half().view(torch.uint8)
    weight = BlockWeight(blocks.flatten(1), form, num_blocks * form.values, input_)
    return _without_padding(weight, in_size)


def _without_padding(weight: BlockWeight, in_size: int) -> BlockWeight:
    """The weight cut to in_size; what is behind it in the last block must be zeros, as far as a format has zeros."""
    if in_size == weight.in_size:
        return weight
    form, rows = weight.format, weight.rows_OB.clone()
    last = rows[:, -form.bytes :]
    kept = in_size - (weight.in_size - form.values)
    if form.name == "fp8_128":
        last[:, 4 + kept :] = 0
    else:
        zero, half = last[:, 2:3].clone(), form.values // 2
        for value in range(kept, form.values):
            place, shift = 3 + value % half, 4 * (value // half)
            last[:, place] = (last[:, place] & (0xF0 >> shift)) | (zero[:, 0] << shift)
    return BlockWeight(rows, form, in_size, weight.input)

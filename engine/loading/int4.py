"""Int4 weights with a scale and a zero point for each group of inputs, brought to kernels.block_weight's blocks.

Their layouts in checkpoints are read by engine.loading.compressed_int4, awq and gptq.
Shapes: O rows, I values of a row, G groups.
"""

from __future__ import annotations

import logging

import torch

from kernels.block_weight import FORMATS, BlockWeight
from kernels.linear_int8 import Input

logger = logging.getLogger(__name__)

SYMMETRIC = 8  # the code of 0 where there are no zero points
_LARGEST = 128  # values that share a scale in a block
_PRECISION = 2.0**-9  # scales may lose this in fp16


def unpack(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """int32 -> 8 codes each along `dim`, uint8; the lowest bits are the first code."""
    codes = torch.stack([(packed >> shift & 15).to(torch.uint8) for shift in range(0, 32, 4)], dim + 1)
    return codes.flatten(dim, dim + 1)


def to_blocks(
    codes_OI: torch.Tensor, scale_OG: torch.Tensor, zero_OG: torch.Tensor | None, group_size: int, input_: Input
) -> BlockWeight | torch.Tensor:
    """The weight (code - zero) * scale in blocks, or in fp32 if its scales overflow in fp16 or lose much.

    Without zeros, all are 8. Groups have 32, 64 or a multiple of 128 inputs; -1 stands for all inputs.
    """
    in_size, scale_OG = codes_OI.shape[1], scale_OG.float()
    size = group_size if group_size in (32, 64) else _LARGEST
    num_blocks = -(-in_size // size)
    group_of_block = torch.arange(num_blocks) * size // (in_size if group_size == -1 else group_size)
    zero_OG = torch.full_like(scale_OG, SYMMETRIC) if zero_OG is None else zero_OG
    scale_OB, zero_OB1 = scale_OG[:, group_of_block], zero_OG[:, group_of_block, None].to(torch.uint8)
    if padding := -in_size % size:  # with zeros
        codes_OI = torch.cat([codes_OI, zero_OB1[:, -1].expand(-1, padding)], 1)
    codes_OBX, half_OB = codes_OI.unflatten(1, (-1, size)), scale_OB.half()
    if not _fits(scale_OB):
        values_OBX: torch.Tensor = (codes_OBX - zero_OB1.float()) * scale_OB[..., None]
        return values_OBX.flatten(1)[:, :in_size]
    is_symmetric = size == FORMATS["q4_0"].values and bool((zero_OB1 == SYMMETRIC).all())
    low, high = codes_OBX.chunk(2, 2)
    head = [half_OB[..., None].view(torch.uint8), *([] if is_symmetric else [zero_OB1])]
    blocks = torch.cat([*head, low | high << 4], 2)
    return BlockWeight(blocks.flatten(1), FORMATS["q4_0" if is_symmetric else f"int4_{size}"], in_size, input_)


def to_8_bit_blocks(
    codes_OI: torch.Tensor, scale_OG: torch.Tensor, group_size: int, input_: Input
) -> BlockWeight | torch.Tensor:
    """The weight (code - 128) * scale in blocks of 32, or in fp32, as `to_blocks`."""
    size, in_size = FORMATS["q8_0"].values, codes_OI.shape[1]
    num_blocks = -(-in_size // size)
    group_of_block = torch.arange(num_blocks) * size // (in_size if group_size == -1 else group_size)
    scale_OB = scale_OG.float()[:, group_of_block]
    codes_OBX = torch.nn.functional.pad(codes_OI ^ 128, (0, -in_size % size)).unflatten(1, (-1, size))  # less 128
    if not _fits(scale_OB):
        values_OBX: torch.Tensor = codes_OBX.contiguous().view(torch.int8).float() * scale_OB[..., None]
        return values_OBX.flatten(1)[:, :in_size]
    blocks = torch.cat([scale_OB.half()[..., None].view(torch.uint8), codes_OBX], 2)
    return BlockWeight(blocks.flatten(1), FORMATS["q8_0"], in_size, input_)


def _fits(scale_OB: torch.Tensor) -> bool:
    """Whether fp16 holds these scales; else there is a warning."""
    if bool(((scale_OB.half().float() - scale_OB).abs() <= _PRECISION * scale_OB.abs()).all()):
        return True
    logger.warning("a weight of %d rows is expanded: fp16, which blocks have their scales in, does not hold its scales",
                   len(scale_OB))  # fmt: skip
    return False

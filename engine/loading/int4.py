"""Int4 weights with a scale and a zero point for each group of inputs, brought to kernels.block_weight's blocks.

Their layouts in checkpoints are read by engine.loading.compressed_int4, awq and gptq.
Shapes: O rows, I values of a row, G groups.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from engine.loading.stored_dtypes import INDICES
from kernels.block_weight import FORMATS, BlockWeight
from kernels.linear_int8 import Input

if TYPE_CHECKING:
    from engine.loading.weights import Weights

logger = logging.getLogger(__name__)

PACKED = (torch.int32,)  # dtypes of codes
SYMMETRIC = 8  # the code of 0 where there are no zero points
_LARGEST = 128  # values that share a scale in a block
_PRECISION = 2.0**-9  # scales may lose this in fp16


def unpack(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """int32 -> 8 codes each along `dim`, uint8; the lowest bits are the first code."""
    pairs = packed.to(torch.int32).movedim(dim, -1).contiguous().view(torch.uint8)  # a byte's low half comes first
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2).movedim(-1, dim)


def take_group_indices(weights: Weights, name: str, in_size: int, num_groups: int) -> torch.Tensor | None:
    """The group of each input, if a tensor of this name says it; one that names no group is a fault."""
    if not weights.holds(name):
        return None
    group_of_I = weights.take_stored(name, (in_size,), dtypes=INDICES)
    if group_of_I is not None and not bool(((group_of_I >= 0) & (group_of_I < num_groups)).all()):
        weights.fault(name, f"has numbers beyond 0 to {num_groups - 1}")
        return None
    return group_of_I


def to_blocks(
    codes_OI: torch.Tensor,
    scale_OG: torch.Tensor,
    zero_OG: torch.Tensor | None,
    group_size: int,
    input_: Input,
    group_of_I: torch.Tensor | None = None,
) -> BlockWeight | torch.Tensor:
    """The weight (code - zero) * scale in blocks, or in fp32 if blocks cannot hold it, with a warning.

    Args:
        codes_OI: uint8.
        scale_OG: scales that fp16 does not hold make it fp32.
        zero_OG: all are 8 without it.
        group_size: 32, 64 or a multiple of 128 inputs; -1 stands for all inputs.
        input_: of its products.
        group_of_I: the group of each input, where neighbours may be of different groups (act-order): makes it fp32.
    """
    in_size, scale_OG = codes_OI.shape[1], scale_OG.float()
    size = group_size if group_size in (32, 64) else _LARGEST
    num_blocks = -(-in_size // size)
    inputs_of_group = in_size if group_size == -1 else group_size
    group_of_block = torch.arange(num_blocks) * size // inputs_of_group
    zero_OG = torch.full_like(scale_OG, SYMMETRIC) if zero_OG is None else zero_OG
    if group_of_I is not None and not torch.equal(group_of_I.long(), torch.arange(in_size) // inputs_of_group):
        _warn(len(scale_OG), "the inputs of a group are not neighbours (act-order), as those of a block are")
        order = group_of_I.long()
        return (codes_OI - zero_OG.float()[:, order]) * scale_OG[:, order]
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
    _warn(len(scale_OB), "fp16, which blocks have their scales in, does not hold its scales")
    return False


def _warn(num_rows: int, why: str) -> None:
    logger.warning("a weight of %d rows is expanded: %s", num_rows, why)

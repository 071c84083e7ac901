"""Rows of a cache in 4 and 5 bits: how many bytes they take, and encoding and decoding by torch.

A row is first rotated by an orthonormal Hadamard matrix, in the blocks of kernels.hadamard. This spreads the few large
values that keys have over all values, which then are nearly normal. One scale, in bf16, is for the whole row: the best
of a few by squared error.

    4 bits     values and latents: a sign and one of eight magnitudes, which are Lloyd and Max's for normal values
    5 bits     keys, whose errors cost several times as much: odd multiples of the scale, -31 to 31

A latent's rotary key stays int8, with a scale of its own, and is not rotated by a Hadamard matrix.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels import hadamard

if TYPE_CHECKING:
    from collections.abc import Callable

MAGNITUDES = (0.12890625, 0.388671875, 0.65625, 0.94140625, 1.2578125, 1.6171875, 2.0625, 2.734375)  # exact in bf16
"""Of normal values with a standard deviation of 1 (Max 1960, Lloyd 1982)."""
_OF_DEVIATION = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)  # scales that are tried for 4 bits: times the row's deviation
_OF_LARGEST = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # and for 5 bits: what the code 31 stands for, of its largest
_LEAST = 1e-12  # so that a row of zeros has a positive scale


@dataclass(frozen=True, slots=True)
class PackedRow:
    """What a row holds: `size` values in `bits` (4 or 5), then `num_int8` values in int8.

    The bytes: in each 16 of them the low halves are 16 values and the high halves the next 16; a row that ends in
    between is filled up. Of 5 bits, the highest follow, 8 values a byte. Then int8.
    """

    size: int
    bits: int
    num_int8: int = 0

    @property
    def num_scales(self) -> int:
        return 2 if self.num_int8 else 1

    @property
    def half_bytes(self) -> int:
        """Bytes of the low four bits."""
        return -(-self.size // 32) * 16

    @property
    def num_bytes(self) -> int:
        return self.half_bytes + (self.size // 8 if self.bits == 5 else 0) + self.num_int8


def encode(x: torch.Tensor, row: PackedRow) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., size + num_int8] to bytes [..., num_bytes] and scales [..., num_scales] in bf16."""
    coded, plain = x.float().split([row.size, row.num_int8], dim=-1)
    rotated = rotate(coded)
    codes, scale = _encode_4(rotated) if row.bits == 4 else _encode_5(rotated)
    parts, scales = [_pack(codes & 15, row)], [scale]
    if row.bits == 5:
        bits = (codes >> 4).unflatten(-1, (-1, 8)) << torch.arange(8, device=x.device)
        parts.append(bits.sum(-1).to(torch.uint8))
    if row.num_int8:
        scales.append((plain.abs().amax(-1, keepdim=True).clamp_min(_LEAST) / 127).bfloat16())
        parts.append((plain / scales[1].float()).round().clamp(-127, 127).to(torch.int8).view(torch.uint8))
    return torch.cat(parts, -1), torch.cat(scales, -1)


def decode(packed: torch.Tensor, scales: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """Bytes [..., num_bytes] and scales [..., num_scales] to rows [..., size + num_int8] in fp32."""
    halves, rest = packed[..., : row.half_bytes], packed[..., row.half_bytes :]
    pairs = halves.unflatten(-1, (-1, 1, 16))
    codes = torch.cat([pairs & 15, pairs >> 4], -2).flatten(-3)[..., : row.size].long()
    if row.bits == 4:
        coded = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)], device=packed.device)[codes]
    else:
        bits = rest[..., : row.size // 8, None] >> torch.arange(8, device=packed.device) & 1
        coded = (codes + 16 * bits.flatten(-2)) * 2.0 - 31
    rows = rotate(coded * scales[..., :1].float())
    if row.num_int8:
        plain = rest[..., -row.num_int8 :].contiguous().view(torch.int8).float() * scales[..., 1:].float()
        rows = torch.cat([rows, plain], -1)
    return rows


def can_rotate(size: int) -> bool:
    """Whether there are blocks of a size that native code has."""
    return size % 16 == 0


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Multiply rows [..., size] in fp32 by a symmetric orthonormal matrix, whose inverse is itself."""
    block = hadamard.block_size(x.shape[-1])
    rotated: torch.Tensor = x.unflatten(-1, (-1, block)) @ _hadamard(block).to(x.device)  # a product: for GPUs
    return rotated.flatten(-2)


@functools.cache
def _hadamard(size: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def _encode_4(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    magnitudes = torch.tensor(MAGNITUDES, device=x.device)
    bounds = (magnitudes[1:] + magnitudes[:-1]) / 2
    deviation = x.square().mean(-1, keepdim=True).sqrt()

    def code(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nearest = torch.bucketize(x.abs() / scale, bounds)
        return nearest + 8 * (x < 0), magnitudes[nearest] * torch.where(x < 0, -scale, scale)

    return _best(x, [deviation * factor for factor in _OF_DEVIATION], code)


def _encode_5(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = x.abs().amax(-1, keepdim=True)

    def code(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = ((x / scale + 31) / 2).round().clamp(0, 31)
        return codes.long(), (codes * 2 - 31) * scale

    return _best(x, [largest * (factor / 31) for factor in _OF_LARGEST], code)


def _best(
    x: torch.Tensor, scales: list[torch.Tensor], code: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale of each row with the least squared error; of equal ones the first."""
    narrow = [scale.clamp_min(_LEAST).bfloat16() for scale in scales]
    best, values = code(narrow[0].float())
    best_scale, least = narrow[0], (values - x).square().sum(-1, keepdim=True)
    for scale in narrow[1:]:
        codes, values = code(scale.float())
        error = (values - x).square().sum(-1, keepdim=True)
        is_better = error < least
        best, best_scale = torch.where(is_better, codes, best), torch.where(is_better, scale, best_scale)
        least = torch.where(is_better, error, least)
    return best, best_scale


def _pack(codes: torch.Tensor, row: PackedRow) -> torch.Tensor:
    filled = torch.nn.functional.pad(codes, (0, 2 * row.half_bytes - row.size))
    low, high = filled.unflatten(-1, (-1, 2, 16)).unbind(-2)
    both: torch.Tensor = low | high << 4
    return both.flatten(-2).to(torch.uint8)

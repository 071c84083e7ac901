"""One layer's cache of keys, values or latents: a tensor of floats, or fewer bits (int8 or packed rows) with scales.

Shapes: B blocks, K key heads, S slots, D values, G scales.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kernels import packed_rows
from kernels.packed_rows import PackedRow

_MIN_ABSMAX = 1e-12  # so that a row of zeros has a positive scale


class Int8Cache(NamedTuple):
    """Int8 values and their scales. Each row of D values has G scales.

    One scale is for all D values. Of two scales (latent attention), the first is the latent's, the second the rotary
    key's.
    """

    values: torch.Tensor  # [B, K, S, D], int8
    scales: torch.Tensor  # [B, K, S, G], fp32


class PackedCache(NamedTuple):
    """Rows of 4 or 5 bits (kernels.packed_rows).

    The native kernels lay out keys and values in their own order within 16 slots of a head (paged_attention/layout.h).
    """

    values: torch.Tensor  # [B, K, S, row.num_bytes], uint8
    scales: torch.Tensor  # [B, K, S, row.num_scales], bf16
    row: PackedRow


Cache = torch.Tensor | Int8Cache | PackedCache


def values_of(cache: Cache) -> torch.Tensor:
    """The tensor [B, K, S, D]; of packed rows, D is their bytes."""
    return cache if isinstance(cache, torch.Tensor) else cache.values


def tensors_of(cache: Cache) -> list[torch.Tensor]:
    """All tensors [B, K, S, ...] of a cache."""
    return [cache] if isinstance(cache, torch.Tensor) else [cache.values, cache.scales]


def by_head(cache: Cache) -> Cache:
    """The cache with blocks and heads flattened into one dimension."""
    if isinstance(cache, torch.Tensor):
        return cache.flatten(0, 1)
    return cache._replace(values=cache.values.flatten(0, 1), scales=cache.scales.flatten(0, 1))


def quantize(x: torch.Tensor, sizes: list[int]) -> Int8Cache:
    """Quantise rows [..., sum of sizes] in parts of these sizes. A part's scale maps its largest value to 127."""
    parts = [part.float() for part in x.split(sizes, dim=-1)]
    scales = [part.abs().amax(-1, keepdim=True).clamp_min(_MIN_ABSMAX) / 127 for part in parts]
    values = [(part / scale).round().to(torch.int8) for part, scale in zip(parts, scales, strict=True)]
    return Int8Cache(torch.cat(values, -1), torch.cat(scales, -1))


def rows_of(cache: Cache, x: torch.Tensor, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows as the cache holds them, each with the tensor it goes to: floats, or what stands for them and scales."""
    if isinstance(cache, torch.Tensor):
        return [(x, cache)]
    rows = quantize(x, sizes) if isinstance(cache, Int8Cache) else packed_rows.encode(x, cache.row)
    return list(zip(rows, tensors_of(cache), strict=True))


def take(cache: Cache, block_ids: torch.Tensor, dtype: torch.dtype, *, first: int | None = None) -> torch.Tensor:
    """Gather blocks [n, K, S, D] as floats.

    Args:
        cache: of either kind.
        block_ids: [n], int64.
        dtype: dtype for a dequantized cache; a cache of floats keeps its own.
        first: of int8, number of values in a row that the first of two scales is for.
    """
    if isinstance(cache, torch.Tensor):
        return cache.index_select(0, block_ids)
    values, scales = (x.index_select(0, block_ids) for x in tensors_of(cache))
    if isinstance(cache, PackedCache):
        return packed_rows.decode(values, scales, cache.row).to(dtype)
    if scales.shape[-1] > 1:
        assert first is not None
        scales = scales.repeat_interleave(torch.tensor([first, values.shape[-1] - first], device=values.device), -1)
    return (values * scales).to(dtype)

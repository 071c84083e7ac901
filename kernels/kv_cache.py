"""A layer's cache for keys, values or latents: numbers, or int8 with scales.

Shapes: B blocks, K key heads, S slots, D values, G scales.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_SMALLEST = 1e-12  # of a row's largest value: a row of zeros has a scale too


class Int8Cache(NamedTuple):
    """Values as multiples of scales, one row of D with G of them.

    With one scale all D values are its multiples. With two (latent attention) the first is of the latent, the last of
    its rotary key.
    """

    values: torch.Tensor  # [B, K, S, D], int8
    scales: torch.Tensor  # [B, K, S, G], fp32


Cache = torch.Tensor | Int8Cache


def values_of(cache: Cache) -> torch.Tensor:
    """The tensor that has the cache's shape."""
    return cache.values if isinstance(cache, Int8Cache) else cache


def scales_of(cache: Cache) -> torch.Tensor | None:
    """The scales, where there are any."""
    return cache.scales if isinstance(cache, Int8Cache) else None


def quantize(x: torch.Tensor, sizes: list[int]) -> Int8Cache:
    """Rows [..., sum of sizes] in parts of these sizes, each with the scale that brings its largest value to 127."""
    parts = [part.float() for part in x.split(sizes, dim=-1)]
    scales = [part.abs().amax(-1, keepdim=True).clamp_min(_SMALLEST) / 127 for part in parts]
    values = [(part / scale).round().to(torch.int8) for part, scale in zip(parts, scales, strict=True)]
    return Int8Cache(torch.cat(values, -1), torch.cat(scales, -1))


def take(cache: Cache, block_ids: torch.Tensor, dtype: torch.dtype, *, first: int | None = None) -> torch.Tensor:
    """Blocks [n, K, S, D] as numbers.

    Args:
        cache: of any form.
        block_ids: [n], int64.
        dtype: what int8 becomes; other caches keep theirs.
        first: where the values end that have the first of two scales.
    """
    if not isinstance(cache, Int8Cache):
        return cache.index_select(0, block_ids)
    values, scales = (x.index_select(0, block_ids) for x in cache)
    if scales.shape[-1] > 1:
        assert first is not None
        scales = scales.repeat_interleave(torch.tensor([first, values.shape[-1] - first], device=values.device), -1)
    return (values * scales).to(dtype)

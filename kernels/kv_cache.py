"""One layer's cache of keys, values or latents: a tensor of floats, or int8 values with scales.

Shapes: B blocks, K key heads, S slots, D values, G scales.
"""

from typing import NamedTuple

import torch

_MIN_ABSMAX = 1e-12  # so that a row of zeros has a positive scale


class Int8Cache(NamedTuple):
    """Int8 values and their scales. Each row of D values has G scales.

    One scale is for all D values. Of two scales (latent attention), the first is the latent's, the second the rotary
    key's.
    """

    values: torch.Tensor  # [B, K, S, D], int8
    scales: torch.Tensor  # [B, K, S, G], fp32


Cache = torch.Tensor | Int8Cache


def values_of(cache: Cache) -> torch.Tensor:
    """The tensor [B, K, S, D]."""
    return cache.values if isinstance(cache, Int8Cache) else cache


def quantize(x: torch.Tensor, sizes: list[int]) -> Int8Cache:
    """Quantise rows [..., sum of sizes] in parts of these sizes. A part's scale maps its largest value to 127."""
    parts = [part.float() for part in x.split(sizes, dim=-1)]
    scales = [part.abs().amax(-1, keepdim=True).clamp_min(_MIN_ABSMAX) / 127 for part in parts]
    values = [(part / scale).round().to(torch.int8) for part, scale in zip(parts, scales, strict=True)]
    return Int8Cache(torch.cat(values, -1), torch.cat(scales, -1))


def rows_of(cache: Cache, x: torch.Tensor, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows as the cache holds them, each with the tensor that it goes to: floats, or int8 values and their scales."""
    return list(zip(quantize(x, sizes), cache, strict=True)) if isinstance(cache, Int8Cache) else [(x, cache)]


def take(cache: Cache, block_ids: torch.Tensor, dtype: torch.dtype, *, first: int | None = None) -> torch.Tensor:
    """Gather blocks [n, K, S, D] as floats.

    Args:
        cache: in floats or int8.
        block_ids: [n], int64.
        dtype: dtype for a dequantized int8 cache; a cache of floats keeps its own.
        first: number of values in a row that the first of two scales is for.
    """
    if not isinstance(cache, Int8Cache):
        return cache.index_select(0, block_ids)
    values, scales = (x.index_select(0, block_ids) for x in cache)
    if scales.shape[-1] > 1:
        assert first is not None
        scales = scales.repeat_interleave(torch.tensor([first, values.shape[-1] - first], device=values.device), -1)
    return (values * scales).to(dtype)

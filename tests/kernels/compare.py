"""How close a fast kernel must come to its reference, and the native libraries that this CPU can run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from kernels import native
from kernels.backends import NativeOps
from kernels.kv_cache import Cache, Int8Cache, PackedCache, quantize, values_of
from kernels.native.build import ISAS
from kernels.packed_rows import PackedRow, encode

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = (torch.float32, torch.bfloat16)
_TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2)}
NATIVE = NativeOps(torch.bfloat16)
LIBRARIES = {isa: library for isa in ISAS if (library := native.load(isa)) is not None}


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Same shape and dtype, and values within the dtype's tolerance."""
    rtol, atol = _TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class _On:
    """An operation, or a module or object of several, as one native library computes it."""

    def __init__(self, isa: str, operation: Any) -> None:
        self._isa, self._operation = isa, operation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "library", LIBRARIES[self._isa])
            result = self._operation(*args, **kwargs)
        return _On(self._isa, result) if callable(result) else result  # a packed layer

    def __getattr__(self, name: str) -> _On:
        return _On(self._isa, getattr(self._operation, name))


def natives(operation: Any) -> dict[str, Any]:
    """An operation from each library that is built and that this CPU can run (not only from the best one)."""
    return {isa: _On(isa, operation) for isa in LIBRARIES}


def int8_cache(cache: torch.Tensor, sizes: list[int]) -> Int8Cache:
    """A cache as int8; slots of NaN get scales of NaN, and values that are not 0."""
    values, scales = quantize(cache.nan_to_num(1), sizes)
    return Int8Cache(values, scales.masked_fill(cache.isnan().any(-1, keepdim=True), float("nan")))


def packed_cache(cache: torch.Tensor, row: PackedRow) -> PackedCache:
    """A cache as packed rows; slots of NaN get scales of NaN, and codes that are not 0."""
    values, scales = encode(cache.nan_to_num(1), row)
    return PackedCache(values, scales.masked_fill(cache.isnan().any(-1, keepdim=True), float("nan")), row)


def empty_packed(num_blocks: int, num_heads: int, block_size: int, row: PackedRow) -> PackedCache:
    """Bytes of 255, which are so in any layout."""
    shape = num_blocks, num_heads, block_size
    values = torch.full((*shape, row.num_bytes), 255, dtype=torch.uint8)
    return PackedCache(values, torch.full((*shape, row.num_scales), float("nan"), dtype=torch.bfloat16), row)


class Layout:
    """How a native library lays keys and values in a cache [B, K, S, D] (paged_attention/layout.h), and back."""

    def __init__(self, dtype: torch.dtype) -> None:
        has_bf16 = native.library.__name__.endswith(("_amx", "_avx512_bf16"))
        self._width = 2 if has_bf16 and dtype is torch.bfloat16 else 1

    def keys(self, cache: Cache, *, to_rows: bool = False) -> Cache:
        """Rows to panels, or panels to rows."""
        if isinstance(cache, PackedCache):
            return self._packed_keys(cache)

        def convert(x: torch.Tensor) -> torch.Tensor:
            columns = x.shape[3] // self._width
            sizes = (columns, 16) if to_rows else (16, columns)
            chunks = x.view(*x.shape[:2], x.shape[2] // 16, *sizes, self._width)
            return chunks.transpose(3, 4).reshape(x.shape).contiguous()

        return _convert(cache, convert)

    def values(self, cache: Cache, *, to_rows: bool = False) -> Cache:
        """Rows to panels, or panels to rows."""
        if isinstance(cache, PackedCache):
            return self._packed_values(cache)

        def convert(x: torch.Tensor) -> torch.Tensor:
            columns = x.shape[3] // 16
            sizes = (columns, 16, self._width) if to_rows else (self._width, columns, 16)
            order = (5, 3, 4) if to_rows else (4, 5, 3)
            rows = x.view(*x.shape[:2], x.shape[2] // self._width, *sizes)
            return rows.permute(0, 1, 2, *order).reshape(x.shape).contiguous()

        return _convert(cache, convert)

    def _packed_keys(self, cache: PackedCache) -> PackedCache:
        """Rows to panels."""
        row, width = cache.row, self._width
        low, high = _halves(cache)[..., : row.size].unflatten(-1, (-1, 2, width)).unbind(-2)
        halves = (low | high << 4).unflatten(2, (-1, 16)).transpose(3, 4).flatten(3)  # [B, K, chunks, bytes]
        halves = torch.nn.functional.pad(halves, (0, 16 * row.half_bytes - halves.shape[-1]), value=255)
        bits = (cache.values[..., row.half_bytes :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        places = torch.arange(8 // width)[:, None] + 4 * torch.arange(width)
        highest = (bits.unflatten(-1, (-1, width)).long() << places).sum((-1, -2)).to(torch.uint8)
        highest = highest.unflatten(2, (-1, 16)).transpose(3, 4).flatten(3)
        return cache._replace(values=torch.cat([halves, highest], -1).view(cache.values.shape))

    def _packed_values(self, cache: PackedCache) -> PackedCache:
        """Rows to panels."""
        groups = cache.values.unflatten(3, (-1, 16)).unflatten(2, (-1, self._width))  # [B, K, groups, W, D / 32, 16]
        return cache._replace(values=groups.permute(0, 1, 2, 4, 5, 3).reshape(cache.values.shape))


def _halves(cache: PackedCache) -> torch.Tensor:
    """The low four bits of each value."""
    bytes_of_16 = cache.values[..., : cache.row.half_bytes].unflatten(-1, (-1, 1, 16))
    return torch.cat([bytes_of_16 & 15, bytes_of_16 >> 4], -2).flatten(-3)


def _convert(cache: Cache, convert: Callable[[torch.Tensor], torch.Tensor]) -> Cache:
    values = values_of(cache)
    if values.shape[2] % 16 or values.shape[3] % 16:
        return cache
    return cache._replace(values=convert(values)) if isinstance(cache, Int8Cache) else convert(values)

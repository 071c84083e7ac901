"""Rotating, normalising and storing in one pass of native code. Contract: kernels.store_kv."""

import torch

from kernels.kv_cache import Cache, Int8Cache, scales_of, values_of
from kernels.native import FLOAT, INT, POINTER, address, function


class CPUStore:
    """The fused operations, bound for one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        rotate = (POINTER, INT, *[POINTER] * 9, *[INT] * 5)
        latents = (POINTER, INT, POINTER, FLOAT, *[POINTER] * 6, INT, INT, INT, INT)
        self._rotate_and_store, self._rotate_and_store_int8 = (
            function(name, dtype, *rotate) for name in ("rotate_and_store", "rotate_and_store_int8")
        )
        self._store_latents, self._store_latents_int8 = (
            function(name, dtype, *latents) for name in ("store_latents", "store_latents_int8")
        )

    def rotate_and_store(
        self,
        qkv_TXD: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        k_cache: Cache,
        v_cache: Cache,
        blocks_T: torch.Tensor,
        offsets_T: torch.Tensor,
    ) -> torch.Tensor:
        num_rows, num_heads, dim = qkv_TXD.shape
        _, num_kv_heads, block_size, _ = values_of(k_cache).shape
        num_heads -= 2 * num_kv_heads
        assert qkv_TXD.stride()[1:] == (dim, 1)
        q_TND = qkv_TXD.new_empty(num_rows, num_heads, dim)
        call = self._rotate_and_store_int8 if isinstance(k_cache, Int8Cache) else self._rotate_and_store
        call(
            qkv_TXD.data_ptr(),
            qkv_TXD.stride(0),
            cos_TD.data_ptr(),
            sin_TD.data_ptr(),
            values_of(k_cache).data_ptr(),
            values_of(v_cache).data_ptr(),
            address(scales_of(k_cache)),
            address(scales_of(v_cache)),
            blocks_T.data_ptr(),
            offsets_T.data_ptr(),
            q_TND.data_ptr(),
            num_rows,
            num_heads,
            num_kv_heads,
            block_size,
            dim,
        )
        return q_TND

    def store_latents(
        self,
        x_TY: torch.Tensor,
        weight_C: torch.Tensor,
        eps: float,
        cos_TR: torch.Tensor,
        sin_TR: torch.Tensor,
        cache: Cache,
        blocks_T: torch.Tensor,
        offsets_T: torch.Tensor,
    ) -> None:
        assert x_TY.stride(1) == 1
        call = self._store_latents_int8 if isinstance(cache, Int8Cache) else self._store_latents
        call(
            x_TY.data_ptr(),
            x_TY.stride(0),
            weight_C.data_ptr(),
            eps,
            cos_TR.data_ptr(),
            sin_TR.data_ptr(),
            values_of(cache).data_ptr(),
            address(scales_of(cache)),
            blocks_T.data_ptr(),
            offsets_T.data_ptr(),
            x_TY.shape[0],
            values_of(cache).shape[2],
            weight_C.shape[0],
            x_TY.shape[1] - weight_C.shape[0],
        )

"""Rotating, normalising and storing in one pass of native code. Contract: kernels.store_kv."""

import torch

from kernels import native
from kernels.kv_cache import Cache, values_of


def rotate_and_store(
    qkv_TXD: torch.Tensor,
    cos_TD: torch.Tensor,
    sin_TD: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    slot_mapping_T: torch.Tensor,
) -> torch.Tensor:
    num_tokens, num_heads, dim = qkv_TXD.shape
    q_TND = qkv_TXD.new_empty(num_tokens, num_heads - 2 * values_of(k_cache).shape[1], dim)
    native.library.rotate_and_store(qkv_TXD, cos_TD, sin_TD, k_cache, v_cache, slot_mapping_T, q_TND)
    return q_TND


def store_latents(
    x_TY: torch.Tensor,
    weight_C: torch.Tensor,
    eps: float,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    cache: Cache,
    slot_mapping_T: torch.Tensor,
) -> None:
    native.library.store_latents(x_TY, weight_C, eps, cos_TR, sin_TR, cache, slot_mapping_T)

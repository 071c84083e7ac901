"""rotate_and_store, composed of rotary and store_kv. Contract: kernels.rotate_and_store."""

from collections.abc import Callable

import torch

from kernels import packed_rows
from kernels.kv_cache import Cache, Int8Cache, rows_of, values_of


def rotate_and_store(
    rotary: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    store_kv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
    qkv_TXD: torch.Tensor,
    cos_TD: torch.Tensor,
    sin_TD: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    slot_mapping_T: torch.Tensor,
) -> torch.Tensor:
    num_kv_heads, dim = values_of(k_cache).shape[1], qkv_TXD.shape[2]
    qk = rotary(qkv_TXD[:, :-num_kv_heads], cos_TD, sin_TD)
    if isinstance(k_cache, Int8Cache) and packed_rows.can_rotate(dim):
        qk = packed_rows.rotate(qk.float()).to(qk.dtype)
    for x_TKD, cache in ((qk, k_cache), (qkv_TXD, v_cache)):
        for rows, part in rows_of(cache, x_TKD[:, -num_kv_heads:], [dim]):
            store_kv(rows, part, slot_mapping_T)
    return qk[:, :-num_kv_heads]

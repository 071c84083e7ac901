"""store_kv as an indexed assignment. Contract: kernels.store_kv."""

import torch


def store_kv(x_TKD: torch.Tensor, cache: torch.Tensor, slot_mapping_T: torch.Tensor) -> None:
    block_size = cache.shape[2]
    cache[slot_mapping_T // block_size, :, slot_mapping_T % block_size] = x_TKD

"""store_kv, token by token. Contract: kernels.store_kv."""

import torch


def store_kv(x_TKD: torch.Tensor, cache: torch.Tensor, slot_mapping_T: torch.Tensor) -> None:
    block_size = cache.shape[2]
    for x_KD, slot in zip(x_TKD, slot_mapping_T.tolist(), strict=True):
        for head, x_D in enumerate(x_KD):
            cache[slot // block_size, head, slot % block_size] = x_D

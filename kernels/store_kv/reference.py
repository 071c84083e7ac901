"""store_kv, token by token. Contract: kernels.store_kv."""

import torch


def store_kv(x_TKD: torch.Tensor, cache: torch.Tensor, blocks_T: torch.Tensor, offsets_T: torch.Tensor) -> None:
    for x_KD, block, offset in zip(x_TKD, blocks_T.tolist(), offsets_T.tolist(), strict=True):
        for head, x_D in enumerate(x_KD):
            cache[block, head, offset] = x_D

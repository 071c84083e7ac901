"""store_kv as one scatter. Contract: kernels.store_kv."""

import torch


def store_kv(x_TKD: torch.Tensor, cache: torch.Tensor, blocks_T: torch.Tensor, offsets_T: torch.Tensor) -> None:
    cache[blocks_T, :, offsets_T] = x_TKD

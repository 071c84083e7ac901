"""store_kv as an indexed assignment; the others composed of other operations. Contract: kernels.store_kv."""

import torch

from kernels.rms_norm.torch_ops import rms_norm
from kernels.rotary.torch_ops import rotary
from kernels.store_kv.reference import Composed


def store_kv(x_TKD: torch.Tensor, cache: torch.Tensor, slot_mapping_T: torch.Tensor) -> None:
    block_size = cache.shape[2]
    cache[slot_mapping_T // block_size, :, slot_mapping_T % block_size] = x_TKD


_composed = Composed(rms_norm, rotary, store_kv)
rotate_and_store, store_latents = _composed.rotate_and_store, _composed.store_latents

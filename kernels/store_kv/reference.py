"""store_kv token by token; the others composed of other operations. Contract: kernels.store_kv."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels.kv_cache import Cache, Int8Cache, quantize, values_of
from kernels.rms_norm.reference import rms_norm
from kernels.rotary.reference import rotary


def store_kv(x_TKD: torch.Tensor, cache: torch.Tensor, slot_mapping_T: torch.Tensor) -> None:
    block_size = cache.shape[2]
    for x_KD, slot in zip(x_TKD, slot_mapping_T.tolist(), strict=True):
        for head, x_D in enumerate(x_KD):
            cache[slot // block_size, head, slot % block_size] = x_D


@dataclass(frozen=True)
class Composed:
    """rotate_and_store and store_latents of one version of the operations that they consist of."""

    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    rotary: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    store_kv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]

    def rotate_and_store(
        self,
        qkv_TXD: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        k_cache: Cache,
        v_cache: Cache,
        slot_mapping_T: torch.Tensor,
    ) -> torch.Tensor:
        num_kv_heads = values_of(k_cache).shape[1]
        qk = self.rotary(qkv_TXD[:, :-num_kv_heads], cos_TD, sin_TD)
        dim = qkv_TXD.shape[2]
        self._write(qk[:, -num_kv_heads:], [dim], k_cache, slot_mapping_T)
        self._write(qkv_TXD[:, -num_kv_heads:], [dim], v_cache, slot_mapping_T)
        return qk[:, :-num_kv_heads]

    def store_latents(
        self,
        x_TY: torch.Tensor,
        weight_C: torch.Tensor,
        eps: float,
        cos_TR: torch.Tensor,
        sin_TR: torch.Tensor,
        cache: Cache,
        slot_mapping_T: torch.Tensor,
    ) -> None:
        latent_dim = len(weight_C)
        latent_TC = self.rms_norm(x_TY[:, :latent_dim], weight_C, eps)
        key_T1R = self.rotary(x_TY[:, None, latent_dim:], cos_TR, sin_TR)
        row_T1Y = torch.cat([latent_TC[:, None], key_T1R], dim=2)
        self._write(row_T1Y, [latent_dim, key_T1R.shape[2]], cache, slot_mapping_T)

    def _write(self, x_TKD: torch.Tensor, sizes: list[int], cache: Cache, slot_mapping_T: torch.Tensor) -> None:
        if not isinstance(cache, Int8Cache):
            self.store_kv(x_TKD, cache, slot_mapping_T)
            return
        for x, part in zip(quantize(x_TKD, sizes), cache, strict=True):
            self.store_kv(x, part, slot_mapping_T)


_composed = Composed(rms_norm, rotary, store_kv)
rotate_and_store, store_latents = _composed.rotate_and_store, _composed.store_latents

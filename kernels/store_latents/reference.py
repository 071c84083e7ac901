"""store_latents, composed of rms_norm, rotary and store_kv. Contract: kernels.store_latents."""

from collections.abc import Callable

import torch

from kernels.kv_cache import Cache, rows_of


def store_latents(
    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    rotary: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    store_kv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
    x_TY: torch.Tensor,
    weight_C: torch.Tensor,
    eps: float,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    cache: Cache,
    slot_mapping_T: torch.Tensor,
) -> None:
    latent_dim = len(weight_C)
    latent_TC = rms_norm(x_TY[:, :latent_dim], weight_C, eps)
    key_T1R = rotary(x_TY[:, None, latent_dim:], cos_TR, sin_TR)
    row_T1Y = torch.cat([latent_TC[:, None], key_T1R], dim=2)
    for rows, part in rows_of(cache, row_T1Y, [latent_dim, key_T1R.shape[2]]):
        store_kv(rows, part, slot_mapping_T)

"""Write a step's latents and their rotary keys into the paged cache of latent attention, in place.

    store_latents(x_TY, weight_C, eps, cos_TR, sin_TR, cache_B1SY, slot_mapping_T)
        cache[slot // S, 0, slot % S] = [rms_norm(x[:C]) * weight, rotary(x[C:])]

The slot mapping is as in kernels.store_kv.

Shapes: T tokens, Y = C + R values: a latent and a rotary key; B blocks of S slots.
"""

from kernels.store_latents import reference

__all__ = ["reference"]

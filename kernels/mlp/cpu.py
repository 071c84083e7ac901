"""The block in native code, in one call. Contract: kernels.mlp."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels import grouped_mlp
from kernels.mlp.torch import Layer, Linear, Weight
from kernels.mlp.torch import pack as compose


def bind(dtype: torch.dtype) -> Callable[..., Linear]:
    """`pack` for one dtype of x: as the only expert of a mixture, where that computes in it; else composed."""

    def pack(
        linear: Callable[[Weight, torch.Tensor | None], Linear],
        silu_mul: Callable[[torch.Tensor], torch.Tensor],
        gate_up: Layer,
        down: Layer,
    ) -> Linear:
        weights = gate_up[0], down[0]
        if gate_up[1] is not None or down[1] is not None or not grouped_mlp.cpu.is_native(dtype, *weights):
            return compose(linear, silu_mul, gate_up, down)
        run = grouped_mlp.cpu.pack_native([weights])
        ids_T1, weights_T1 = torch.zeros(0, 1, dtype=torch.int64), torch.ones(0, 1)

        def apply(x_TH: torch.Tensor) -> torch.Tensor:
            nonlocal ids_T1, weights_T1
            num_tokens = x_TH.shape[0]
            if num_tokens > ids_T1.shape[0]:
                ids_T1, weights_T1 = torch.zeros(num_tokens, 1, dtype=torch.int64), torch.ones(num_tokens, 1)
            return run(x_TH, ids_T1[:num_tokens], weights_T1[:num_tokens])

        return apply

    return pack

"""The experts, token by token. Contract: kernels.grouped_mlp."""

from collections.abc import Callable, Iterable

import torch

from kernels.types import GroupedMLP, Projection, Weight


def grouped_mlp(
    projection: Projection,
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    experts: Iterable[tuple[Weight, Weight]],
) -> GroupedMLP:
    packed = [(projection(gate_up, None), projection(down, None)) for gate_up, down in experts]

    def apply(x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        y_TH = torch.zeros(x_TH.shape, dtype=torch.float32, device=x_TH.device)
        for token, (ids, weights) in enumerate(zip(ids_TK.tolist(), weights_TK.tolist(), strict=True)):
            for expert, weight in zip(ids, weights, strict=True):
                gate_up, down = packed[expert]
                y_TH[token] += weight * down(silu_mul(gate_up(x_TH[token : token + 1])))[0].float()
        return y_TH.to(x_TH.dtype)

    return apply

"""The experts over tokens sorted by expert: one call for each chosen expert. Contract: kernels.grouped_mlp.

Shapes: P = T * K pairs of token and expert, sorted by expert.
"""

from collections.abc import Callable, Iterable

import torch

from kernels.types import GroupedMLP, Projection, Weight

Combine = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def grouped_mlp(
    projection: Projection,
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    experts: Iterable[tuple[Weight, Weight]],
) -> GroupedMLP:
    return pack_with(combine, projection, silu_mul, experts)


def pack_with(
    combine: Combine,
    projection: Projection,
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    experts: Iterable[tuple[Weight, Weight]],
) -> GroupedMLP:
    """grouped_mlp with another sum over experts: combine(y_PH, where_TK, weights_TK) -> y_TH."""
    packed = [(projection(gate_up, None), projection(down, None)) for gate_up, down in experts]

    def apply(x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        ids_P = ids_TK.flatten()
        order_P = ids_P.argsort(stable=True)
        x_PH = x_TH.index_select(0, order_P // ids_TK.shape[1])
        y_PH = torch.empty_like(x_PH)
        chosen, counts = ids_P[order_P].unique_consecutive(return_counts=True)
        start = 0
        for expert, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            gate_up, down = packed[expert]
            pairs = slice(start, start + count)
            y_PH[pairs] = down(silu_mul(gate_up(x_PH[pairs])))
            start += count
        where_P = torch.empty_like(order_P)
        where_P[order_P] = torch.arange(len(order_P), device=order_P.device)
        return combine(y_PH, where_P.view(ids_TK.shape), weights_TK)

    return apply


def combine(y_PH: torch.Tensor, where_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    y_TKH = y_PH.index_select(0, where_TK.flatten()).view(*where_TK.shape, -1)
    return (y_TKH.float() * weights_TK[:, :, None]).sum(1).to(y_PH.dtype)

"""The experts over tokens sorted by expert, each of those chosen at once. Contract: kernels.grouped_mlp.

Shapes: P = T * K pairs of token and expert.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

Linear = Callable[[torch.Tensor], torch.Tensor]


def pack(
    linear: Callable[[torch.Tensor, None], Linear],
    silu_mul: Callable[[torch.Tensor], torch.Tensor],
    gate_up: list[torch.Tensor],
    down: list[torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    experts = [(linear(first, None), linear(second, None)) for first, second in zip(gate_up, down, strict=True)]

    def apply(x_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        ids_P = ids_TK.flatten()
        order_P = ids_P.argsort(stable=True)
        rows_P = order_P // ids_TK.shape[1]
        x_PH = x_TH.index_select(0, rows_P)
        y_PH = torch.empty_like(x_PH)
        counts = ids_P.bincount(minlength=len(experts)).tolist()
        ends = itertools.accumulate(counts)
        for (first, second), count, end in zip(experts, counts, ends, strict=True):
            if count:
                pairs = slice(end - count, end)
                y_PH[pairs] = second(silu_mul(first(x_PH[pairs])))
        weighted_PH = y_PH.float() * weights_TK.flatten().index_select(0, order_P)[:, None]
        y_TH = torch.zeros(x_TH.shape, dtype=torch.float32, device=x_TH.device)
        return y_TH.index_add_(0, rows_P, weighted_PH).to(x_TH.dtype)

    return apply

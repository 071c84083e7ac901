"""The experts of one layer, grouped: each one's tokens lie side by side.

Tokens go to their places and come back by gathers alone, in the backward pass too: a gather is several times faster
than the addition at indices that autograd would take.

Shapes: N flat tokens, H hidden, K choices of a token, P places (training.model.assignment), X = P + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from training.model.grouped_mlp import grouped_mlp

if TYPE_CHECKING:
    from engine.models.config import ModelConfig, MoEConfig
    from training.model.assignment import Assignment
    from training.model.grouped_mlp import Weights


class Expert(nn.Module):
    """The weights of down(silu(gate x) * up x), which training.model.grouped_mlp computes for all experts."""

    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, size, bias=False)
        self.up_proj = nn.Linear(hidden_size, size, bias=False)
        self.down_proj = nn.Linear(size, hidden_size, bias=False)

    @property
    def weights(self) -> Weights:
        """Gate, up, down."""
        return self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight


class Experts(nn.ModuleDict):
    """Experts by their numbers. A rank of an expert-parallel model has some, and adds its sum to those of others."""

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        experts = (Expert(config.hidden_size, moe.moe_intermediate_size) for _ in range(moe.n_routed_experts))
        super().__init__({str(number): expert for number, expert in enumerate(experts)})

    def forward(self, x_NH: torch.Tensor, weights_NK: torch.Tensor, assignment: Assignment) -> torch.Tensor:
        """[N, H] in the weights' dtype: the sum over the chosen experts that are here, each times its weight."""
        places = assignment.places([int(number) for number in self])
        x_XH = _ToPlaces.apply(x_NH, places.token_X, places.place_KN)  # type: ignore[no-untyped-call]
        experts = [expert for expert in self.values() if isinstance(expert, Expert)]
        y_XH = grouped_mlp(x_XH, places.counts, [expert.weights for expert in experts])
        y_NH: torch.Tensor = _FromPlaces.apply(y_XH, weights_NK, places.choice_P, places.token_X, places.place_KN)  # type: ignore[no-untyped-call]
        return y_NH


class _ToPlaces(torch.autograd.Function):
    """x_XH = x_NH[token_X]; the last row is of no place, and its gradient must be zero."""

    @staticmethod
    @override
    def forward(ctx: Any, x_NH: torch.Tensor, token_X: torch.Tensor, place_KN: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place_KN)
        return x_NH.index_select(0, token_X)

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (place_KN,) = ctx.saved_tensors
        first, *rest = place_KN
        grad_NH = grads[0].index_select(0, first)
        for place_N in rest:
            grad_NH += grads[0].index_select(0, place_N)
        return grad_NH, None, None


class _FromPlaces(torch.autograd.Function):
    """y_NH = the sum over k of weights_NK[:, k] * y_XH[place_KN[k]]; the last row of y_XH is zero."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        y_XH: torch.Tensor,
        weights_NK: torch.Tensor,
        choice_P: torch.Tensor,
        token_X: torch.Tensor,
        place_KN: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(y_XH, weights_NK, choice_P, token_X, place_KN)
        y_NH = y_XH.index_select(0, place_KN[0]) * weights_NK[:, :1]
        for k, place_N in enumerate(place_KN[1:], 1):
            y_NH.addcmul_(y_XH.index_select(0, place_N), weights_NK[:, k : k + 1])
        return y_NH

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        y_XH, weights_NK, choice_P, token_X, place_KN = ctx.saved_tensors
        grad_NH = grads[0]
        weight_X = F.pad(weights_NK.T.flatten().index_select(0, choice_P), (0, 1))
        grad_XH = (grad_NH.index_select(0, token_X) * weight_X[:, None]).to(y_XH.dtype)
        of_weights = [(grad_NH * y_XH.index_select(0, place_N)).sum(-1) for place_N in place_KN]
        return grad_XH, torch.stack(of_weights, dim=-1), None, None, None

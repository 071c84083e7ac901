"""The mixture of experts of one layer: router, capacity, balancing loss. The experts are in training.model.experts.

The balancing loss (Switch Transformers, arXiv 2101.03961) is E * sum of f_e * P_e over the tokens of a micro batch: f_e
the share of the choices that are e, before any is dropped, and P_e e's mean probability. It is put on the weights by an
identity whose backward pass adds its gradient, so that a model has one output, and a pipeline's stages too.

Shapes: B rows, T padded tokens, H hidden, N = B * T, E experts, K choices of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from training.model.assignment import Assignment, assign, expert_capacity
from training.model.experts import Experts

if TYPE_CHECKING:
    from engine.models.config import ModelConfig, MoEConfig
    from training.model.context import BatchContext


class Router(nn.Module):
    """softmax(fc2(GELU(fc1 x)) + noise), in fp32 under autocast too; the noise is learned."""

    def __init__(self, hidden_size: int, moe: MoEConfig) -> None:
        super().__init__()
        assert moe.router_hidden_size is not None
        self.fc1 = nn.Linear(hidden_size, moe.router_hidden_size)
        self.fc2 = nn.Linear(moe.router_hidden_size, moe.n_routed_experts)
        self.noise = nn.Parameter(0.1 * torch.randn(moe.n_routed_experts))

    def forward(self, x_NH: torch.Tensor) -> torch.Tensor:
        """[N, E], probabilities."""
        with torch.autocast(x_NH.device.type, enabled=False):
            logits_NE = self.fc2(F.gelu(self.fc1(x_NH.float()))) + self.noise
            p_NE: torch.Tensor = logits_NE.softmax(-1)
        return p_NE


class MoE(nn.Module):
    """The layer. In training, an expert takes at most its capacity of a micro batch; else it takes all."""

    def __init__(self, config: ModelConfig, layer: int, capacity_factor: float) -> None:
        super().__init__()
        assert config.moe is not None
        self.router = Router(config.hidden_size, config.moe)
        self.experts = Experts(config, config.moe)
        self._moe, self._layer, self._capacity_factor = config.moe, layer, capacity_factor

    def forward(self, x_BTH: torch.Tensor, context: BatchContext) -> torch.Tensor:
        x_NH = x_BTH.flatten(0, 1)
        p_NE = self.router(x_NH)
        ids_NK = self._choose(p_NE)
        assignment = self._assign(ids_NK, context)
        weights_NK = p_NE.gather(1, ids_NK)
        if self._moe.norm_topk_prob:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        if self.training:
            loss = self._balance_loss(p_NE, assignment, context)
            weights_NK = _WithLoss.apply(weights_NK, loss * context.balance_loss_weight)  # type: ignore[no-untyped-call]
        y_NH: torch.Tensor = self.experts(x_NH, weights_NK, assignment)
        return y_NH.view(x_BTH.shape)

    def _choose(self, p_NE: torch.Tensor) -> torch.Tensor:
        """The experts with the largest probabilities, of equal ones the lower number."""
        order_NE = p_NE.detach().sort(dim=-1, descending=True, stable=True).indices
        return order_NE[:, : self._moe.num_experts_per_tok]

    def _assign(self, ids_NK: torch.Tensor, context: BatchContext) -> Assignment:
        num_experts, top_k = self._moe.n_routed_experts, self._moe.num_experts_per_tok
        capacity = None
        if self.training:
            capacity = expert_capacity(self._capacity_factor, context.num_tokens, top_k, num_experts)
        return assign(ids_NK, context.is_token_N, num_experts, capacity)

    def _balance_loss(self, p_NE: torch.Tensor, assignment: Assignment, context: BatchContext) -> torch.Tensor:
        if context.is_token_N is not None:
            p_NE = p_NE * context.is_token_N[:, None]
        p_E = p_NE.sum(0) / context.num_tokens
        total = sum(assignment.arrived)
        f_E = p_E.new_tensor([count / total for count in assignment.arrived])
        loss = len(f_E) * (f_E * p_E).sum()
        num_dropped = total - sum(assignment.num_taken)
        context.statistics.record(self._layer, assignment.arrived, num_dropped, loss)
        return loss


class _WithLoss(torch.autograd.Function):
    """x as it is; in the backward pass the loss gets the gradient 1, whatever the gradient of x."""

    @staticmethod
    @override
    def forward(ctx: Any, x: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.loss_shape = loss.shape
        return x.view_as(x)

    @staticmethod
    @override
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grads[0], grads[0].new_ones(ctx.loss_shape)

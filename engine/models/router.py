"""The gate of a mixture of experts: chooses and weights the experts of each token (kernels.routing).

    V1, V2      softmax scores; a group's score is its best expert's
    V3          sigmoid scores, plus e_score_correction_bias for the choice; a group's score is the sum of its best two
    DynamicMoE  softmax scores of two layers with GELU between them

DeepSeek's weights follow its own code. A softmax router with norm_topk_prob renormalises weights; without it, it scales
weights by routed_scaling_factor. A sigmoid router with norm_topk_prob renormalises, and always scales. A single expert
is never renormalised. (transformers' V2 ignores norm_topk_prob, and its V3 renormalises a single expert; no released
model has such settings.)

Shapes: T tokens, H hidden, E n_routed_experts, K num_experts_per_tok.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels.routing import RoutingRule

if TYPE_CHECKING:
    from engine.models.config import MoEConfig
    from engine.models.layers import Builder


class Router:
    """Computes expert ids and weights from hidden states."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config = build.config.moe
        assert config is not None
        self._rule, self._ops = routing_rule(config), build.ops
        shape = (config.n_routed_experts, build.config.hidden_size)
        weight_EH = build.weights.take(f"{prefix}.weight", shape, torch.float32)
        self._linear = build.fp32_linear(weight_EH)
        self._bias_E: torch.Tensor | None = None
        if config.topk_method == "noaux_tc":
            name = f"{prefix}.e_score_correction_bias"
            self._bias_E = build.weights.take(name, (config.n_routed_experts,), torch.float32)

    def forward(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H] -> expert ids [T, K] int64, weights [T, K] fp32."""
        return self._ops.routing(self._linear(x_TH), self._bias_E, self._rule)


class DynamicRouter:
    """DynamicMoE's: scores are softmax(fc2(GELU(fc1(x))) + noise), all in fp32.

    The noise is a learned vector, the same for all tokens, so that it is part of fc2's bias.
    """

    def __init__(self, build: Builder, prefix: str, size: int) -> None:
        config = build.config.moe
        assert config is not None
        self._ops = build.ops
        self._rule = RoutingRule(config.num_experts_per_tok, renormalises=config.norm_topk_prob)
        num_experts, hidden = config.n_routed_experts, build.config.hidden_size

        def take(name: str, *shape: int) -> torch.Tensor:
            return build.weights.take(f"{prefix}.{name}", shape, torch.float32)

        bias_E = take("fc2.bias", num_experts).add_(take("noise", num_experts))
        self._fc1 = build.fp32_linear(take("fc1.weight", size, hidden), take("fc1.bias", size))
        self._fc2 = build.ops.linear(take("fc2.weight", num_experts, size), bias_E, torch.float32)

    def forward(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H] -> expert ids [T, K] int64, weights [T, K] fp32."""
        return self._ops.routing(self._fc2(self._ops.gelu(self._fc1(x_TH))), None, self._rule)


def routing_rule(config: MoEConfig) -> RoutingRule:
    """The config as a rule of kernels.routing."""
    is_sigmoid, is_greedy = config.scoring_func == "sigmoid", config.topk_method == "greedy"
    renormalises = config.norm_topk_prob and config.num_experts_per_tok > 1
    experts_of_group = config.n_routed_experts // config.n_group
    return RoutingRule(
        num_experts_per_tok=config.num_experts_per_tok,
        is_sigmoid=is_sigmoid,
        n_group=1 if is_greedy else config.n_group,
        topk_group=1 if is_greedy else config.topk_group,
        best_of_group=min(2, experts_of_group) if config.topk_method == "noaux_tc" else 1,
        renormalises=renormalises,
        scale=1.0 if renormalises and not is_sigmoid else config.routed_scaling_factor,
    )

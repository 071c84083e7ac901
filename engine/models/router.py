"""The gate of a mixture of experts: which experts a token goes through, and how much each counts (kernels.routing).

DeepSeek's versions differ in numbers:

    V1, V2   softmax, a group counts by its best expert
    V3       sigmoid, chosen by scores + e_score_correction_bias, a group counts by the sum of its best two

The weights are, as DeepSeek's own code does it, renormalised or scaled: softmax routers with norm_topk_prob
renormalise, others scale by routed_scaling_factor; sigmoid routers renormalise if norm_topk_prob, and always scale; one
expert alone is never renormalised. (transformers' V2 ignores norm_topk_prob, and its V3 renormalises one expert too; no
released model tells the difference.)

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
    """A gate: hidden states to expert ids and weights."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config = build.config.moe
        assert config is not None
        self._rule, self._ops = routing_rule(config), build.ops
        shape = (config.n_routed_experts, build.config.hidden_size)
        weight_EH = build.weights.take(f"{prefix}.weight", shape, torch.float32)
        self._linear = build.ops.linear(weight_EH, None, torch.float32)
        self._bias_E: torch.Tensor | None = None
        if config.topk_method == "noaux_tc":
            name = f"{prefix}.e_score_correction_bias"
            self._bias_E = build.weights.take(name, (config.n_routed_experts,), torch.float32)

    def forward(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H] -> expert ids [T, K] int64, weights [T, K] fp32."""
        return self._ops.routing(self._linear(x_TH), self._bias_E, self._rule)


def routing_rule(config: MoEConfig) -> RoutingRule:
    """What the config says, in the terms of kernels.routing."""
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

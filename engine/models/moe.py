"""A mixture-of-experts block (DeepSeekMoE, arXiv 2401.06066): routed experts for some tokens, shared ones for all.

    y = sum over chosen experts of weight * expert(x), plus shared_experts(x)

The shared experts are one MLP of n_shared_experts times the width. Shapes: T tokens, H hidden, F moe_intermediate_size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.models.layers import MLP
from engine.models.router import DynamicRouter, Router

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from engine.models.layers import Builder
    from kernels.types import Weight


class MixtureOfExperts:
    """Router, routed experts, shared experts."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config = build.config.moe
        assert config is not None
        hidden, inter = build.config.hidden_size, config.moe_intermediate_size
        self._router: Router | DynamicRouter
        if config.router_hidden_size is None:
            self._router = Router(build, f"{prefix}.gate")
        else:
            self._router = DynamicRouter(build, f"{prefix}.router", config.router_hidden_size)

        def experts() -> Iterator[tuple[Weight, Weight]]:
            for expert in range(config.n_routed_experts):
                name = f"{prefix}.experts.{expert}"
                gate_up, _ = build.stacked({f"{name}.gate_proj": inter, f"{name}.up_proj": inter}, hidden)
                yield gate_up, build.weights.take_linear(f"{name}.down_proj", (hidden, inter))

        self._experts = build.ops.grouped_mlp(experts())
        self._shared: MLP | None = None
        if config.n_shared_experts:
            self._shared = MLP(build, f"{prefix}.shared_experts", inter * config.n_shared_experts)

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, H]."""
        ids_TK, weights_TK = self._router.forward(x_TH)
        y_TH = self._experts(x_TH, ids_TK, weights_TK)
        return y_TH if self._shared is None else self._shared.forward(x_TH, y_TH)

"""DynamicMoE in training, in the plainest torch: a dense mask, every expert on every token, places counted one by one.

It shares no code with training/, and autograd differentiates it. One row without padding.

Shapes: T tokens, H hidden, E experts, K choices of a token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from tests.support.dynamic_moe_reference import DynamicMoEReference


class DenseReference(DynamicMoEReference):
    """A checkpoint folder's model; `weights` require gradients."""

    def __init__(self, folder: Any, capacity_factor: float | None) -> None:
        super().__init__(folder)
        self.capacity_factor = capacity_factor
        self.balance_losses: list[torch.Tensor] = []
        self.num_dropped = 0
        for tensor in self.weights.values():
            tensor.requires_grad_()

    def _layer(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        w, prefix = self.weights, f"model.layers.{layer}"
        h = x + self._attention(layer, self._rms_norm(x, f"{prefix}.input_layernorm.weight"))
        h = h + self.experts(f"{prefix}.mlp", self._rms_norm(h, f"{prefix}.post_attention_layernorm.weight"))
        name = f"{prefix}.compression"
        if f"{name}.encoder.weight" not in w:
            return h
        inner = F.gelu(F.linear(h, w[f"{name}.encoder.weight"], w[f"{name}.encoder.bias"]))
        h = h + F.linear(inner, w[f"{name}.decoder.weight"], w[f"{name}.decoder.bias"])
        return F.layer_norm(h, h.shape[-1:], w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])

    def experts(self, prefix: str, x_TH: torch.Tensor) -> torch.Tensor:
        w, router = self.weights, f"{prefix}.router"
        inner = F.gelu(F.linear(x_TH, w[f"{router}.fc1.weight"], w[f"{router}.fc1.bias"]))
        p_TE = (F.linear(inner, w[f"{router}.fc2.weight"], w[f"{router}.fc2.bias"]) + w[f"{router}.noise"]).softmax(-1)
        top_k, num_experts = self.config.get("moe_top_k", 2), p_TE.shape[1]
        chosen = [sorted(range(num_experts), key=lambda e, p=p: (-p[e], e))[:top_k] for p in p_TE.tolist()]
        total_T = sum(p_TE[torch.arange(len(x_TH)), torch.tensor([c[k] for c in chosen])] for k in range(top_k))
        gate_TE = p_TE * self._places(chosen, num_experts)
        if self.config.get("norm_topk_prob", False):
            gate_TE = gate_TE / total_T[:, None]
        self.balance_losses.append(balance_loss(p_TE, chosen))
        outputs = []
        for expert in range(num_experts):
            gate, up, down = (w[f"{prefix}.experts.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            outputs.append(F.linear(F.silu(F.linear(x_TH, gate)) * F.linear(x_TH, up), down))
        return (torch.stack(outputs, 1) * gate_TE[:, :, None]).sum(1)

    def _places(self, chosen: list[list[int]], num_experts: int) -> torch.Tensor:
        """1 where a token has a place at an expert, [T, E]: first choices arrive before second ones."""
        taken, places = [0] * num_experts, torch.zeros(len(chosen), num_experts)
        top_k = len(chosen[0])
        capacity = math.inf
        if self.capacity_factor is not None:
            capacity = max(1, int(self.capacity_factor * len(chosen) * top_k / num_experts))
        for k in range(top_k):
            for token, experts in enumerate(chosen):
                if taken[experts[k]] < capacity:
                    taken[experts[k]] += 1
                    places[token, experts[k]] = 1
                else:
                    self.num_dropped += 1
        return places


def balance_loss(p_TE: torch.Tensor, chosen: list[list[int]]) -> torch.Tensor:
    """E * sum of f_e * P_e, expert by expert."""
    num_choices, num_experts = len(chosen) * len(chosen[0]), p_TE.shape[1]
    loss = torch.zeros(())
    for expert in range(num_experts):
        share = sum(experts.count(expert) for experts in chosen) / num_choices
        loss = loss + share * p_TE[:, expert].mean()
    return num_experts * loss

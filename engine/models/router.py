"""Which experts a token goes through, and how much each counts. All in fp32.

    V1, V2   scores = softmax(x W);  choice = scores       (a group counts by its best expert)
    V3       scores = sigmoid(x W);  choice = scores + e_score_correction_bias   (by the sum of its best two)

Experts of the topk_group best groups are eligible; of these, the num_experts_per_tok best by choice are taken,
weighted by their scores. The weights are then, as DeepSeek's own code does it, renormalised or scaled: softmax
routers with norm_topk_prob renormalise, others scale by routed_scaling_factor; sigmoid routers renormalise if
norm_topk_prob, and always scale; one expert alone is never renormalised. (transformers' V2 ignores norm_topk_prob,
and its V3 renormalises one expert too; no released model tells the difference.)

Shapes: T tokens, H hidden, E n_routed_experts, G n_group, K num_experts_per_tok.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from engine.models.layers import Builder


class Router:
    """A gate: hidden states to expert ids and weights."""

    def __init__(self, build: Builder, prefix: str) -> None:
        config = build.config.moe
        assert config is not None
        self._config = config
        shape = (config.n_routed_experts, build.config.hidden_size)
        self._linear = build.kernels.linear_f32(build.weights.take(f"{prefix}.weight", shape, torch.float32), None)
        self._bias_E: torch.Tensor | None = None
        if config.topk_method == "noaux_tc":
            name = f"{prefix}.e_score_correction_bias"
            self._bias_E = build.weights.take(name, (config.n_routed_experts,), torch.float32)

    def forward(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H] -> expert ids [T, K] int64, weights [T, K] fp32."""
        logits_TE = self._linear(x_TH)
        scores_TE = logits_TE.sigmoid() if self._config.scoring_func == "sigmoid" else logits_TE.softmax(-1)
        choice_TE = scores_TE if self._bias_E is None else scores_TE + self._bias_E
        if self._config.topk_method != "greedy":
            choice_TE = self._only_best_groups(choice_TE)
        ids_TK = choice_TE.topk(self._config.num_experts_per_tok, dim=-1, sorted=False).indices
        return ids_TK, self._weigh(scores_TE.gather(1, ids_TK))

    def _only_best_groups(self, choice_TE: torch.Tensor) -> torch.Tensor:
        config = self._config
        if config.n_group == 1:
            return choice_TE
        grouped_TGX = choice_TE.view(len(choice_TE), config.n_group, -1)
        best = min(2 if config.topk_method == "noaux_tc" else 1, grouped_TGX.shape[2])
        group_scores_TG = grouped_TGX.topk(best, dim=-1).values.sum(-1)
        kept_TG = torch.zeros_like(group_scores_TG, dtype=torch.bool)
        kept_TG.scatter_(1, group_scores_TG.topk(config.topk_group, dim=-1, sorted=False).indices, True)
        return grouped_TGX.masked_fill(~kept_TG[:, :, None], float("-inf")).flatten(1)

    def _weigh(self, weights_TK: torch.Tensor) -> torch.Tensor:
        config = self._config
        renormalises = config.norm_topk_prob and config.num_experts_per_tok > 1
        if renormalises:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        if renormalises and config.scoring_func == "softmax":
            return weights_TK
        return weights_TK * config.routed_scaling_factor

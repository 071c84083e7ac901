"""routing, token by token. Contract: kernels.routing."""

import math

import torch

from kernels.routing.rule import RoutingRule


def routing(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, rule: RoutingRule
) -> tuple[torch.Tensor, torch.Tensor]:
    bias = [0.0] * logits_TE.shape[1] if bias_E is None else bias_E.tolist()
    chosen = [_route_one(logits, bias, rule) for logits in logits_TE.tolist()]
    shape = (len(chosen), rule.num_experts_per_tok)
    ids = torch.tensor([ids for ids, _ in chosen], dtype=torch.int64).view(shape)
    return ids, torch.tensor([weights for _, weights in chosen], dtype=torch.float32).view(shape)


def _route_one(logits: list[float], bias: list[float], rule: RoutingRule) -> tuple[list[int], list[float]]:
    if rule.is_sigmoid:
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    else:
        powers = [math.exp(x - max(logits)) for x in logits]
        scores = [power / sum(powers) for power in powers]
    choice = [score + extra for score, extra in zip(scores, bias, strict=True)]
    size = len(logits) // rule.n_group
    groups = [range(first, first + size) for first in range(0, len(logits), size)]
    groups.sort(key=lambda group: sum(sorted((choice[expert] for expert in group), reverse=True)[: rule.best_of_group]))
    eligible = [expert for group in groups[-rule.topk_group :] for expert in group]
    ids = sorted(eligible, key=lambda expert: (-choice[expert], expert))[: rule.num_experts_per_tok]
    total = sum(scores[expert] for expert in ids) + 1e-20 if rule.renormalises else 1.0
    return ids, [scores[expert] / total * rule.scale for expert in ids]

"""routing through torch's own operators. Contract: kernels.routing."""

import torch

from kernels.routing.rule import RoutingRule


def routing(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, rule: RoutingRule
) -> tuple[torch.Tensor, torch.Tensor]:
    scores_TE = logits_TE.sigmoid() if rule.is_sigmoid else logits_TE.softmax(-1)
    choice_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if rule.topk_group < rule.n_group:
        choice_TE = _only_best_groups(choice_TE, rule)
    order_TE = choice_TE.sort(dim=-1, descending=True, stable=True).indices  # topk takes any of equal ones
    ids_TK = order_TE[:, : rule.num_experts_per_tok]
    weights_TK = scores_TE.gather(1, ids_TK)
    if rule.renormalises:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return ids_TK, weights_TK * rule.scale


def _only_best_groups(choice_TE: torch.Tensor, rule: RoutingRule) -> torch.Tensor:
    num_tokens, num_experts = choice_TE.shape
    choice_TGX = choice_TE.view(num_tokens, rule.n_group, num_experts // rule.n_group)
    group_choice_TG = choice_TGX.topk(rule.best_of_group, dim=-1).values.sum(-1)
    eligible_TG = torch.zeros_like(group_choice_TG, dtype=torch.bool)
    eligible_TG.scatter_(1, group_choice_TG.topk(rule.topk_group, dim=-1, sorted=False).indices, True)
    return choice_TGX.masked_fill(~eligible_TG[:, :, None], float("-inf")).flatten(1)

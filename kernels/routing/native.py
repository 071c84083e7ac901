"""route in native code, in one call. Contract: kernels.routing."""

import torch

from kernels import native
from kernels.routing.rule import RoutingRule


def routing(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, rule: RoutingRule
) -> tuple[torch.Tensor, torch.Tensor]:
    ids_TK = torch.empty(len(logits_TE), rule.num_experts_per_tok, dtype=torch.int64)
    weights_TK = torch.empty(ids_TK.shape, dtype=torch.float32)
    native.library.routing(
        logits_TE,
        bias_E,
        ids_TK,
        weights_TK,
        is_sigmoid=rule.is_sigmoid,
        n_group=rule.n_group,
        topk_group=rule.topk_group,
        best_of_group=rule.best_of_group,
        renormalises=rule.renormalises,
        scale=rule.scale,
    )
    return ids_TK, weights_TK

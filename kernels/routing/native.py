"""route in native code, in one call. Contract: kernels.routing."""

from collections.abc import Callable

import torch

from kernels.native import FLOAT, INT, POINTER, address, plain_function
from kernels.routing.rule import RoutingRule


def bind() -> Callable[[torch.Tensor, torch.Tensor | None, RoutingRule], tuple[torch.Tensor, torch.Tensor]]:
    """The operation, from the library."""
    call = plain_function("route", *[POINTER] * 4, *[INT] * 8, FLOAT)

    def route(
        logits_TE: torch.Tensor, bias_E: torch.Tensor | None, rule: RoutingRule
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits_TE = logits_TE.contiguous()
        num_tokens, num_experts = logits_TE.shape
        ids_TK = torch.empty(num_tokens, rule.num_experts_per_tok, dtype=torch.int64)
        weights_TK = torch.empty(num_tokens, rule.num_experts_per_tok, dtype=torch.float32)
        call(
            logits_TE.data_ptr(),
            address(bias_E),
            ids_TK.data_ptr(),
            weights_TK.data_ptr(),
            num_tokens,
            num_experts,
            rule.num_experts_per_tok,
            rule.is_sigmoid,
            rule.n_group,
            rule.topk_group,
            rule.best_of_group,
            rule.renormalises,
            rule.scale,
        )
        return ids_TK, weights_TK

    return route

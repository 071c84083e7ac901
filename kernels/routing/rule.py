"""The parameters of a router. Contract: kernels.routing."""

from typing import NamedTuple


class RoutingRule(NamedTuple):
    """How experts are chosen and weighted.

    Attributes:
        num_experts_per_tok: chosen experts of a token, K; at most the number of eligible experts.
        is_sigmoid: scores are sigmoids; else a softmax.
        n_group, topk_group: number of groups of experts, and number of eligible groups.
        best_of_group: number of experts in the sum that is a group's value; at most X.
        renormalises: weights are divided by their sum.
        scale: a factor for the weights.
    """

    num_experts_per_tok: int
    is_sigmoid: bool = False
    n_group: int = 1
    topk_group: int = 1
    best_of_group: int = 1
    renormalises: bool = False
    scale: float = 1.0

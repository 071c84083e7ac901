"""A router's numbers. Contract: kernels.routing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How experts are chosen and weighted.

    Attributes:
        num_experts_per_tok: of a token, K; no more than the eligible groups have.
        is_sigmoid: scores are sigmoids; else a softmax.
        n_group, topk_group: groups of experts, and how many of them are eligible.
        best_of_group: experts whose sum is what a group counts for; X at most.
        renormalises: weights are divided by their sum.
        scale: what they are multiplied with then.
    """

    num_experts_per_tok: int
    is_sigmoid: bool = False
    n_group: int = 1
    topk_group: int = 1
    best_of_group: int = 1
    renormalises: bool = False
    scale: float = 1.0

"""The experts of each token, and their weights. Computed in fp32.

    routing(logits_TE, bias_E or None, rule) -> ids_TK int64, weights_TK fp32

An expert's score is the softmax or the sigmoid of its logit. Experts are chosen by score + bias: a group's value is the
sum over its best_of_group best experts; the experts of the topk_group best groups are eligible; the num_experts_per_tok
best eligible experts are chosen, of equal ones those with the lowest ids, in any order. A chosen expert's weight is its
score (without bias), divided by the sum of the chosen scores if the rule renormalises, times the rule's scale. The K
ids of a token are valid and different for any logits, NaN included. Tokens are independent. Cost: O(T * E * K).

Shapes: T tokens, E experts, G groups of X = E / G neighbours, K num_experts_per_tok.
"""

from kernels.routing import reference, torch_ops
from kernels.routing.rule import RoutingRule

__all__ = ["RoutingRule", "reference", "torch_ops"]

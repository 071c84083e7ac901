"""Which experts a token goes through, and how much each counts. All in fp32.

    routing(logits_TE, bias_E or None, rule) -> ids_TK int64, weights_TK fp32

Scores are the logits' softmax or sigmoids, and what experts are chosen by is their score plus their bias. A group of
experts counts by the sum of its best; the experts of the topk_group best groups are eligible, and of these the
num_experts_per_tok best are taken, in any order, weighted by their scores (without the bias): divided by their sum if
the rule says so, then times its scale. Ids are those of experts and differ from each other whatever the logits are,
NaN too. A token's experts depend on no other token. Cost: O(T * E * K).

Shapes: T tokens, E experts, G groups of X = E / G neighbours, K num_experts_per_tok.
"""

from kernels.routing import native, reference, torch_ops
from kernels.routing.rule import RoutingRule

__all__ = ["RoutingRule", "native", "reference", "torch_ops"]

import pytest
import torch

from kernels import routing
from kernels.routing import RoutingRule
from tests.kernels.compare import NATIVE, natives, randn

VERSIONS = {"torch": routing.torch_ops.routing, **natives(NATIVE.routing)}
EXPERTS = 24
RULES = {
    "V1": RoutingRule(6),
    "V2": RoutingRule(3, n_group=8, topk_group=3, scale=16.0),
    "V3": RoutingRule(4, is_sigmoid=True, n_group=4, topk_group=2, best_of_group=2, renormalises=True, scale=2.5),
    "one": RoutingRule(1),
    "all": RoutingRule(EXPERTS, is_sigmoid=True, renormalises=True),
    "groups of one": RoutingRule(2, n_group=EXPERTS, topk_group=5),
}


def as_dense(ids, weights, num_experts):
    """Weights of all experts, 0 of those that were not chosen: in whatever order they were."""
    return torch.zeros(len(ids), num_experts).scatter_(1, ids, weights)


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("num_tokens", [1, 3, 100])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("version", VERSIONS)
def test_matches_the_reference(version, rule, num_tokens, biased):
    logits = randn(num_tokens, EXPERTS, dtype=torch.float32) * 3
    bias = randn(EXPERTS, dtype=torch.float32, seed=1) / 4 if biased else None
    expected, actual = (route(logits, bias, rule) for route in (routing.reference.routing, VERSIONS[version]))
    assert actual[0].dtype == torch.int64
    torch.testing.assert_close(as_dense(*actual, EXPERTS), as_dense(*expected, EXPERTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 15, 17, 160, 256])
@pytest.mark.parametrize("version", VERSIONS)
def test_any_number_of_experts(version, size):
    logits, rule = randn(9, size, dtype=torch.float32), RoutingRule(min(8, size), renormalises=True)
    expected, actual = (route(logits, None, rule) for route in (routing.reference.routing, VERSIONS[version]))
    torch.testing.assert_close(as_dense(*actual, size), as_dense(*expected, size), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("version", VERSIONS)
def test_ids_are_different_experts_whatever_the_logits_are(version, bad, rule):
    logits = randn(3, EXPERTS, dtype=torch.float32)
    whole = VERSIONS[version](logits, None, rule)
    logits[0] = bad
    logits[1, 5] = bad
    ids, weights = VERSIONS[version](logits, None, rule)
    for row in ids:
        assert len(set(row.tolist())) == rule.num_experts_per_tok
        assert row.min() >= 0
        assert row.max() < EXPERTS
    assert torch.equal(ids[2], whole[0][2])
    assert torch.equal(weights[2], whole[1][2]), "the others know nothing of it"


@pytest.mark.parametrize("version", VERSIONS)
def test_large_logits_do_not_overflow(version):
    logits = torch.tensor([[500.0, -500.0, 499.0, 0.0]])
    for is_sigmoid in (False, True):
        rule = RoutingRule(4, is_sigmoid=is_sigmoid)
        dense = as_dense(*VERSIONS[version](logits, None, rule), 4)
        expected = logits.sigmoid() if is_sigmoid else logits.softmax(-1)
        torch.testing.assert_close(dense, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", ["reference", *VERSIONS])
def test_of_equal_experts_the_first_are_chosen(version):
    route = routing.reference.routing if version == "reference" else VERSIONS[version]
    logits = torch.tensor([[1.0] * EXPERTS, [0.0] * 5 + [2.0] + [0.0] * (EXPERTS - 6)])
    ids, weights = route(logits, None, RoutingRule(3, renormalises=True))
    assert [sorted(row) for row in ids.tolist()] == [[0, 1, 2], [0, 1, 5]]
    torch.testing.assert_close(weights[0], torch.full((3,), 1 / 3))


@pytest.mark.parametrize("version", VERSIONS)
def test_no_tokens(version):
    ids, weights = VERSIONS[version](torch.empty(0, EXPERTS), None, RULES["V3"])
    assert ids.shape == weights.shape == (0, 4)

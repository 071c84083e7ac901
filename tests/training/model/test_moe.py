"""Experts, capacity and the balancing loss, against tokens that are counted one by one."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from tests.support.token_batches import make_tokens
from tests.training.model.dense_reference import balance_loss
from training.model.assignment import assign, expert_capacity
from training.model.losses import cross_entropy

E, N = 5, 40


def choices(top_k, seed=0):
    """[N, K] of different experts; the first ones are chosen more often."""
    weights = torch.arange(E, 0, -1.0).expand(N, E)
    return torch.multinomial(weights, top_k, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("capacity", [None, 1, 9, 100])
@pytest.mark.parametrize("num_padding", [0, 13])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_places_are_given_in_order_of_arrival(top_k, num_padding, capacity):
    ids = choices(top_k)
    is_token = torch.rand(N, generator=torch.Generator().manual_seed(1)).argsort() >= num_padding
    taken: dict[int, list[tuple[int, int]]] = {expert: [] for expert in range(E)}
    for k, token in itertools.product(range(top_k), range(N)):
        expert = int(ids[token, k])
        if is_token[token] and (capacity is None or len(taken[expert]) < capacity):
            taken[expert].append((k, token))
    assignment = assign(ids, is_token if num_padding else None, E, capacity)
    assert assignment.num_taken == [len(pairs) for pairs in taken.values()]
    assert sum(assignment.arrived) == top_k * (N - num_padding)
    for experts in (range(E), (1, 3), (4,)):
        places = assignment.places(experts)
        expected = [pair for expert in experts for pair in taken[expert]]
        assert [divmod(choice, N) for choice in places.choice_P.tolist()] == expected
        assert places.token_X[:-1].tolist() == [token for _, token in expected]
        found = {(k, token): place for k, row in enumerate(places.place_KN.tolist()) for token, place in enumerate(row)}
        numbers = {pair: place for place, pair in enumerate(expected)}
        assert found == {pair: numbers.get(pair, len(expected)) for pair in found}


def test_capacity_is_the_even_share_times_a_factor():
    assert expert_capacity(1.25, 4096, 2, 8) == 1280
    assert expert_capacity(1.0, 10, 1, 4) == 2
    assert expert_capacity(1.0, 1, 1, 8) == 1
    assert expert_capacity(1e308, 10, 2, 8) == 20


def test_ranks_with_some_of_the_experts_add_up_to_the_layer(make_model):
    """As experts are divided: each rank has some modules, and outputs and gradients of inputs are added."""
    moe = make_model("mixed", expert_capacity=0.75).model.layers["0"].mlp
    ids = torch.stack([torch.randperm(6)[:2] for _ in range(N)])
    assignment = assign(ids, None, 6, 10)
    inputs = (torch.randn(N, 64), torch.rand(N, 2))
    results = []
    for parts in ([range(6)], [range(2), range(2, 6)]):
        x, weights = (value.clone().requires_grad_() for value in inputs)
        total = torch.zeros(())
        for part in parts:
            experts = copy.deepcopy(moe.experts)
            for number in set(range(6)) - set(part):
                del experts[str(number)]
            total = total + experts(x, weights, assignment)
        results.append([total, *torch.autograd.grad(total.square().sum(), (x, weights))])
    for whole, divided in zip(*results, strict=True):
        torch.testing.assert_close(divided, whole, rtol=1e-5, atol=1e-5)


def test_dropped_choices_are_missing_from_the_sum_and_inference_drops_none(make_model):
    model, tokens = make_model("mixed", expert_capacity=0.25), make_tokens(60, 33)
    dropping = model(tokens)
    statistics = model.statistics.take()
    assert all(0.5 < layer.dropped_share < 1 for layer in statistics.values())
    full = make_model("mixed", expert_capacity=100.0)
    everything = full(tokens)
    assert not torch.allclose(dropping, everything, atol=0.01)
    assert all(layer.num_dropped == 0 for layer in full.statistics.take().values())
    assert torch.equal(model.eval()(tokens), everything)
    assert model.statistics.take() == {}


def test_statistics_are_summed_over_micro_batches(make_model):
    model = make_model("mixed")
    for seed in range(2):
        model(make_tokens(60, 33, seed=seed))
    both = model.statistics.take()
    assert list(both) == [0, 1, 2]
    singles = []
    for seed in range(2):
        model(make_tokens(60, 33, seed=seed))
        singles.append(model.statistics.take())
    for layer, sums in both.items():
        assert sums.num_batches == 2
        assert sums.arrived == [a + b for a, b in zip(*(single[layer].arrived for single in singles), strict=True)]
        assert sums.num_dropped == sum(single[layer].num_dropped for single in singles)
        assert sums.balance_loss == pytest.approx(sum(single[layer].balance_loss for single in singles))
        assert sum(sums.load) == pytest.approx(6)


def test_balancing_loss_of_a_padded_batch(make_model):
    """Value and gradient, from the router's probabilities of tokens alone."""
    model, tokens = make_model("mixed"), make_tokens(40, 25)
    moe = model.model.layers["0"].mlp
    recorded = []
    moe.router.register_forward_hook(lambda _, __, p: recorded.append(p))
    model(tokens)
    is_token = (torch.arange(40) < tokens.lengths_B[:, None]).flatten()
    p = recorded[0][is_token].detach().requires_grad_()
    chosen = p.topk(2).indices.tolist()
    expected = balance_loss(p, chosen)
    assert model.statistics.take()[0].balance_loss == pytest.approx(expected.item(), rel=1e-5)


def test_balancing_losses_weigh_what_the_model_says(make_model):
    """The gradient of a router is linear in the weight, and without one comes from the tokens' loss alone."""
    model, tokens = make_model("mixed"), make_tokens(40, 25)
    weight, gradients = model.model.layers["2"].mlp.router.fc2.weight, []
    for factor in (0.0, 1.0, 2.0):
        model.balance_loss_weight = factor
        model.zero_grad()
        cross_entropy(model, model(tokens), tokens.token_ids_BT).backward()
        gradients.append(weight.grad)
    assert (gradients[1] - gradients[0]).abs().max() > 1e-4
    torch.testing.assert_close(gradients[2] - gradients[0], 2 * (gradients[1] - gradients[0]), rtol=1e-3, atol=1e-4)


def test_experts_that_nobody_chose_have_gradients_of_zero(make_model):
    """So that optimizers treat all ranks' experts alike."""
    model = make_model("mixed")
    model(make_tokens(1)).sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if ".experts." in name]
    assert sum(bool((grad == 0).all()) for grad in gradients) == len(gradients) * 4 // 6

"""The training form against the model's definition, the serving engine, and a dense differentiable reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support import checkpoints, tiny_dynamic_moe
from tests.support.dynamic_moe_reference import DynamicMoEReference
from tests.support.running import load, prompt_logits
from tests.support.token_batches import make_tokens
from tests.training.model.dense_reference import DenseReference
from training.model.build import build_model
from training.model.description import ModelDescription
from training.model.dynamic_moe import BALANCE_LOSS_WEIGHT, DynamicMoE, last_hidden
from training.model.losses import cross_entropy

VARIANTS = [*tiny_dynamic_moe.VARIANTS]
LENGTHS = (130, 97, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_definition(make_dynamic_moe, make_model, variant):
    reference, model = DynamicMoEReference(make_dynamic_moe(variant)), make_model(variant).eval()
    tokens = make_tokens(*LENGTHS, num_modalities=model.config.num_modalities)
    with torch.no_grad():
        logits = model.logits(model(tokens))
    for row, length in enumerate(LENGTHS):
        ids, modalities = (x[row, :length].tolist() for x in (tokens.token_ids_BT, tokens.modality_ids_BT))
        assert (logits[row, :length] - reference.logits(ids, modalities)).abs().max() <= 1e-4


@pytest.mark.parametrize("variant", ["mixed", "sparse 8"])
def test_logits_are_those_of_the_engine(make_dynamic_moe, make_model, variant):
    tokens, model = make_tokens(200), make_model(variant).eval()
    with torch.no_grad():
        logits = model.logits(model(tokens)[0])
    served = prompt_logits(load(make_dynamic_moe(variant)), tokens.token_ids_BT[0].tolist())
    assert (logits - served).abs().max() <= 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_the_tensors_of_the_checkpoint(make_dynamic_moe, make_model, variant):
    stored = checkpoints.read_weights(make_dynamic_moe(variant))
    parameters = dict(make_model(variant).named_parameters())
    assert {name: p.shape for name, p in parameters.items()} == {name: t.shape for name, t in stored.items()}


@pytest.mark.parametrize("variant", ["mixed", "defaults", "sparse 24", "local"])
@pytest.mark.parametrize("capacity", [0.5, 1.25])
def test_gradients_are_those_of_a_dense_mask_and_of_places_counted_one_by_one(make_dynamic_moe, variant, capacity):
    folder = make_dynamic_moe(variant, expert_capacity=capacity, num_hidden_layers=3, attention_types=_types(variant))
    model = build_model(ModelDescription.read(folder), folder)
    reference = DenseReference(folder, capacity)
    tokens = make_tokens(70, num_modalities=model.config.num_modalities)
    ids, modalities = tokens.token_ids_BT[0], tokens.modality_ids_BT[0]
    targets = ids.roll(-1)

    loss = cross_entropy(model, model(tokens), targets[None]) / len(ids)
    loss.backward()
    logits = reference.logits(ids.tolist(), modalities.tolist())
    expected = torch.nn.functional.cross_entropy(logits, targets)
    (expected + BALANCE_LOSS_WEIGHT * sum(reference.balance_losses)).backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    statistics = model.statistics.take()
    assert sum(layer.num_dropped for layer in statistics.values()) == reference.num_dropped
    assert reference.num_dropped > 0
    for layer, balance in zip(statistics.values(), reference.balance_losses, strict=True):
        assert layer.balance_loss == pytest.approx(balance.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if not name.startswith("heads."):
            torch.testing.assert_close(parameter.grad, reference.weights[name].grad, rtol=1e-3, atol=1e-6, msg=name)


def _types(variant):
    return tiny_dynamic_moe.VARIANTS[variant].get("attention_types", ["block_sparse"] * 3)


def test_what_stands_in_padding_changes_nothing(make_model):
    """Neither hidden states, nor which tokens are dropped, nor gradients, nor statistics."""
    model = make_model("mixed", expert_capacity=0.75)
    tokens = make_tokens(60, 33, 9)
    targets = torch.full_like(tokens.token_ids_BT, -100)
    is_token = torch.arange(60) < tokens.lengths_B[:, None]
    targets[is_token] = 7
    seen = []
    for padding in (0, 200):
        ids = tokens.token_ids_BT.where(is_token, padding)
        batch = dataclasses.replace(tokens, token_ids_BT=ids, modality_ids_BT=(~is_token).long() * (padding % 3))
        model.zero_grad()
        hidden = model(batch)
        cross_entropy(model, hidden, targets).backward()
        gradients = [p.grad for name, p in model.named_parameters() if not name.startswith("heads.")]
        seen.append([hidden[is_token], *gradients, model.statistics.take()])
    *first, counts = seen[0]
    *second, counts_again = seen[1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert counts == counts_again
    assert sum(counts[0].arrived) == 2 * (60 + 33 + 9)


@pytest.mark.parametrize("parts", [(1, 2), (1, 1, 1), (2, 1)])
def test_stages_in_a_row_are_the_whole_model(make_dynamic_moe, make_model, parts):
    folder, whole, tokens = make_dynamic_moe("mixed"), make_model("mixed"), make_tokens(50, 20)
    names, hidden, start = [], None, 0
    for size in parts:
        stage = build_model(ModelDescription.read(folder), folder, layers=range(start, start + size))
        names += [name for name, _ in stage.named_parameters()]
        hidden, start = stage(tokens, hidden), start + size
    assert torch.equal(hidden, whole(tokens))
    assert sorted(names) == sorted(name for name, _ in whole.named_parameters())


def test_a_stage_needs_layers(make_model):
    config = make_model("mixed").config
    for layers in (range(0), range(2, 4), range(0, 3, 2)):
        with pytest.raises(ValueError, match="a stage has layers"):
            DynamicMoE(config, layers=layers)


def test_the_first_and_the_last_stage_have_a_shared_table(make_model):
    config = dataclasses.replace(make_model("mixed").config, tie_word_embeddings=True)
    for layer, has_table in enumerate((True, *[False] * (config.num_hidden_layers - 2), True)):
        names = dict(DynamicMoE(config, layers=range(layer, layer + 1)).named_parameters())
        assert ("model.embed_tokens.weight" in names) == has_table
        assert ("model.modality_scale.weight" in names) == (layer == 0)


def test_activation_checkpointing_changes_nothing_but_memory(make_model):
    model, tokens = make_model("mixed", expert_capacity=0.75, hidden_dropout=0.1), make_tokens(60, 33)
    seen = []
    for is_on in (False, True):
        torch.manual_seed(0)
        model.activation_checkpointing = is_on
        model.zero_grad()
        loss = cross_entropy(model, model(tokens), tokens.token_ids_BT)
        loss.backward()
        gradients = [p.grad for name, p in model.named_parameters() if not name.startswith("heads.")]
        seen.append(([loss.detach(), *gradients], model.statistics.take()))
    assert all(torch.equal(a, b) for a, b in zip(seen[0][0], seen[1][0], strict=True))
    assert seen[0][1] == seen[1][1]


@pytest.mark.parametrize("kind", ["hidden_dropout", "attention_dropout"])
def test_dropout_is_drawn_anew_in_training_and_absent_elsewhere(make_model, kind):
    model, plain, tokens = make_model("mixed", **{kind: 0.2}), make_model("mixed").eval(), make_tokens(60)
    torch.manual_seed(0)
    first, second = model(tokens), model(tokens)
    torch.manual_seed(0)
    assert torch.equal(model(tokens), first)
    assert not torch.allclose(first, second, atol=0.01)
    assert torch.equal(model.eval()(tokens), plain(tokens))


def test_bf16_is_near_and_gradients_are_fp32(make_model):
    model, tokens = make_model("mixed"), make_tokens(130, 97)
    exact = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens)
        loss = cross_entropy(model, hidden, tokens.token_ids_BT)
    loss.backward()
    assert hidden.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert (hidden.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert {p.grad.dtype for name, p in model.named_parameters() if not name.startswith("heads.")} == {torch.float32}


def test_task_heads_read_the_last_token_of_a_row(make_dynamic_moe, make_model):
    model, tokens = make_model("mixed").eval(), make_tokens(40, 17)
    reference = DynamicMoEReference(make_dynamic_moe("mixed"))
    hidden_BH = last_hidden(model(tokens), tokens)
    for name, head in model.heads.items():
        for row, length in enumerate((40, 17)):
            expected = reference.head(name, tokens.token_ids_BT[row, :length].tolist())
            torch.testing.assert_close(head(hidden_BH)[row], expected, rtol=1e-4, atol=1e-4)

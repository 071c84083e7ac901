"""Losses in chunks against torch's on all logits, and that all logits are never there."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.support.tensor_sizes import LargestTensor
from training.batch import IGNORED
from training.model import losses
from training.model.losses import cross_entropy, target_logprobs

B, T = 3, 17


@pytest.fixture(params=[1, 7 * 258, 1 << 23], ids=["rows", "chunks", "whole"])
def _chunk_values(request, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_VALUES", request.param)


def inputs(model, share_ignored):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, model.config.hidden_size, generator=generator, requires_grad=True)
    targets = torch.randint(256, (B, T), generator=generator)
    return hidden, targets.masked_fill(torch.rand(B, T, generator=generator) < share_ignored, IGNORED)


def results(model, hidden, loss):
    model.zero_grad()
    hidden.grad = None
    (3 * loss).backward()
    return [loss.detach(), hidden.grad, model.output_weight.grad]


@pytest.mark.usefixtures("_chunk_values")
@pytest.mark.parametrize("share_ignored", [0.0, 0.4])
@pytest.mark.parametrize("variant", ["mixed", "sparse 8"])
def test_cross_entropy_is_torchs(make_model, variant, share_ignored):
    model = make_model(variant)
    hidden, targets = inputs(model, share_ignored)
    expected = F.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten(), reduction="sum")
    expected = results(model, hidden, expected)
    for a, b in zip(results(model, hidden, cross_entropy(model, hidden, targets)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_chunk_values")
@pytest.mark.parametrize("share_ignored", [0.0, 0.4])
def test_logprobs_of_targets_are_torchs(make_model, share_ignored):
    """Each row counts differently, as in DPO."""
    model = make_model("mixed")
    hidden, targets = inputs(model, share_ignored)
    weights = torch.arange(1.0, B + 1)
    all_logprobs = model.logits(hidden).log_softmax(-1)
    expected = all_logprobs.gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0].masked_fill(targets == IGNORED, 0)
    actual = target_logprobs(model, hidden, targets)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    pairs = [results(model, hidden, (logprobs.sum(1).sigmoid() * weights).sum()) for logprobs in (expected, actual)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, lambda *args: target_logprobs(*args).sum()])
def test_nothing_to_learn_is_zero(make_model, loss):
    model = make_model("mixed")
    hidden, targets = inputs(model, 2.0)
    value = loss(model, hidden, targets)
    assert value == 0
    if value.requires_grad:
        assert not any(grad.any() for grad in results(model, hidden, value))


@pytest.mark.parametrize("loss", [cross_entropy, lambda *args: target_logprobs(*args).sum()])
def test_all_logits_are_never_in_memory(make_model, monkeypatch, loss):
    monkeypatch.setattr(losses, "CHUNK_VALUES", 4 * 258)
    model = make_model("mixed")
    hidden = torch.randn(8, 80, 64, requires_grad=True)
    with LargestTensor() as largest:
        loss(model, hidden, torch.zeros(8, 80, dtype=torch.int64)).backward()
    assert largest.numel == hidden.numel() < 8 * 80 * 258


def test_evaluation_computes_no_gradients(make_model, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_VALUES", 4 * 258)
    model = make_model("mixed")
    hidden, targets = inputs(model, 0.0)
    exact = cross_entropy(model, hidden, targets)
    with torch.no_grad(), LargestTensor() as largest:
        assert cross_entropy(model, hidden, targets) == exact
    assert largest.numel == model.output_weight.numel()  # the weight itself, transposed

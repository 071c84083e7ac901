from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.support import tiny_recipe
from training.model.build import build_model
from training.model.description import ModelDescription
from training.objectives.language_model import LanguageModel
from training.worker import LocalWorker

if TYPE_CHECKING:
    from training.batch import Batch

OBJECTIVE = LanguageModel()


def _worker(dtype: torch.dtype = torch.float32) -> LocalWorker:
    description = ModelDescription.parse({**tiny_recipe.MODEL, "hidden_dropout": 0.0})
    return LocalWorker(build_model(description, None), torch.device("cpu"), dtype)


def _gradients(batches: list[Batch]) -> dict[str, torch.Tensor]:
    worker = _worker()
    worker.forward_backward(OBJECTIVE, batches, 1 / sum(map(OBJECTIVE.count, batches)))
    return {name: p.grad for name, p in worker.module.named_parameters() if p.grad is not None}


def test_the_same_micro_batch_twice_has_the_gradients_of_one() -> None:
    """The balancing loss is a mean over micro batches, as the loss is one over tokens."""
    one, two = (_gradients([tiny_recipe.batch(1)] * count) for count in (1, 2))
    assert one.keys() == two.keys()
    assert any("router.fc2" in name for name in one)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient)


def test_sums_are_of_all_micro_batches_and_tokens_without_a_target_count_in_none() -> None:
    batches = [tiny_recipe.batch(1), tiny_recipe.batch(2, (7,))]
    assert [OBJECTIVE.count(batch) for batch in batches] == [31, 6]
    worker = _worker()
    worker.module.eval()
    with torch.no_grad():
        sums = [worker.forward(OBJECTIVE, part)["loss"] for part in (batches[:1], batches[1:], batches)]
        hidden = worker.module(batches[1].tokens)
        logits_NV = worker.module.logits(hidden[0, :6])
    expected = torch.nn.functional.cross_entropy(logits_NV, batches[1].targets_BT[0, :6], reduction="sum")
    assert sums[1] == pytest.approx(float(expected), rel=1e-5)
    assert sums[2] == pytest.approx(sums[0] + sums[1], rel=1e-6)


def test_bfloat16_is_autocast_and_weights_stay_in_float32() -> None:
    exact, rounded = _worker(), _worker(torch.bfloat16)
    losses = [worker.forward_backward(OBJECTIVE, [tiny_recipe.batch(1)], 1.0)["loss"] for worker in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {p.dtype for p in rounded.module.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in rounded.module.parameters() if p.grad is not None} == {torch.float32}


def test_statistics_are_of_the_steps_since_they_were_taken() -> None:
    worker = _worker()
    assert worker.take_statistics() == {}
    worker.forward_backward(OBJECTIVE, [tiny_recipe.batch(1)] * 3, 1.0)
    load = worker.take_statistics()
    assert load.keys() == {"expert_load_min", "expert_load_max", "dropped", "balance_loss"}
    assert load["balance_loss"] == pytest.approx(1, rel=0.3)
    assert worker.take_statistics() == {}

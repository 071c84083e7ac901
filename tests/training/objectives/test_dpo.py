"""DPO's loss is trl's formula, written out over whole logits; its reference stays as it was."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from tests.support.small_training import make_batch
from tests.training.objectives.test_heads import settings_of, train
from training.batch import IGNORED
from training.errors import TrainingError
from training.objectives.objective import make

BETA = 0.3
BATCH = {"lengths": [9, 7, 6, 12], "prompt": 4}


def sequence_logprobs(model, batch):
    """The sum of the answers' log-probabilities, from all logits."""
    logprobs = model.logits(model(batch.tokens)).log_softmax(-1)
    learnt = batch.targets_BT != IGNORED
    return (logprobs.gather(-1, batch.targets_BT.clamp(min=0)[..., None])[..., 0] * learnt).sum(-1)


@pytest.fixture
def objective(small_folder):
    torch.set_num_threads(1)
    return make(settings_of(small_folder, {"kind": "dpo", "beta": BETA}))


def test_the_loss_is_trls(objective, make_model):
    model, reference, batch = make_model().eval(), make_model().eval(), make_batch(**BATCH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    policy, ref = sequence_logprobs(model, batch), sequence_logprobs(reference, batch)
    logratios, ref_logratios = policy[0::2] - policy[1::2], ref[0::2] - ref[1::2]
    rewards = BETA * (policy - ref)
    loss = objective.loss(model, model(batch.tokens), batch)
    torch.testing.assert_close(loss.sum, -F.logsigmoid(BETA * (logratios - ref_logratios)).sum())
    assert objective.count(batch) == 2
    torch.testing.assert_close(loss.metrics["margin"], (rewards[0::2] - rewards[1::2]).sum())
    assert float(loss.metrics["ranked_right"]) == (rewards[0::2] > rewards[1::2]).sum()


def test_it_starts_at_log_2_also_where_experts_drop_tokens(objective, make_model):
    model, batch = make_model().train(), make_batch([40, 30, 35, 44], prompt=4)
    loss = objective.loss(model, model(batch.tokens), batch)
    assert sum(layer.num_dropped for layer in model.statistics.take().values()) > 0
    assert float(loss.sum.detach()) == pytest.approx(2 * math.log(2), rel=1e-6)


def test_training_tells_chosen_from_rejected_and_leaves_the_reference(objective, make_model):
    model, batch = make_model(), make_batch(**BATCH)
    before = copy.deepcopy(objective._reference.state_dict())
    last = train(model, objective, batch, 25)
    assert float(last.metrics["ranked_right"]) == 2
    assert float(last.sum.detach()) < 0.5
    assert all(torch.equal(value, before[name]) for name, value in objective._reference.state_dict().items())
    assert not objective._reference.statistics.take()


def test_a_run_needs_weights_to_start_from(small_folder):
    with pytest.raises(TrainingError, match="expects a folder with the weights"):
        make(settings_of(small_folder / "config.json", "dpo"))

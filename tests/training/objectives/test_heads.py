"""The objectives of task heads: losses as they are defined, which parameters learn, and new heads."""

import json

import pytest
import torch
from torch.nn import functional as F

from tests.support.small_training import make_batch, write_small
from training.config import Settings
from training.errors import TrainingError
from training.model.build import build_model
from training.model.description import ModelDescription
from training.objectives.heads import with_heads
from training.objectives.objective import make

LABELS = [0, 2, 1, 2]
KINDS = {"classification": LABELS, "reasoning": [0, 1, 1, 0]}


def settings_of(folder, objective):
    return Settings(output="out", model=folder, objective=objective, data={"files": ["a.jsonl"]})


def train(model, objective, batch, num_steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(num_steps):
        loss = objective.loss(model, model(batch.tokens), batch)
        (loss.sum / objective.count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective.loss(model, model(batch.tokens), batch)


def expected_loss(kind, model, batch):
    hidden = model(batch.tokens)[range(4), batch.tokens.lengths_B - 1]
    values = F.linear(hidden, model.heads[kind].weight, model.heads[kind].bias)
    if kind == "classification":
        probabilities = values.softmax(-1)[range(4), batch.labels_B]
        return -probabilities.log().sum(), (values.argmax(-1) == batch.labels_B).sum()
    sound = values[:, 0].sigmoid()
    likelihood = torch.where(batch.labels_B == 1, sound, 1 - sound)
    return -likelihood.log().sum(), (likelihood > 0.5).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_of_each_rows_last_token(small_folder, make_model, kind):
    objective, batch = make(settings_of(small_folder, kind)), make_batch([5, 9, 3, 7], labels=KINDS[kind])
    model = make_model().eval()
    loss = objective.loss(model, model(batch.tokens), batch)
    expected, num_right = expected_loss(kind, model, batch)
    torch.testing.assert_close(loss.sum, expected)
    assert float(loss.metrics["accuracy"]) == num_right
    assert objective.count(batch) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["all", "head"])
def test_what_is_learnt_is_known_and_what_is_left_alone_is_the_same(small_folder, make_model, kind, part):
    objective, batch = (
        make(settings_of(small_folder, {"kind": kind, "train": part})),
        make_batch([5, 9, 3, 7], labels=KINDS[kind]),
    )
    model, before = make_model(), dict(make_model().named_parameters())
    first = float(objective.loss(model, model(batch.tokens), batch).sum.detach())
    last = train(model, objective, batch, 40)
    assert float(last.sum.detach()) < 0.7 * first
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    heads = {name for name in before if name.startswith(f"heads.{kind}")}
    assert changed == heads if part == "head" else changed > heads


def test_a_model_without_a_head_gets_one(tmp_path):
    folder = write_small(tmp_path / "bare", task_heads={})
    bare, objective = ModelDescription.read(folder), {"kind": "classification", "labels": ["safe", "harm"]}
    described = with_heads(bare, settings_of(folder, objective))
    assert described.config.task_heads.labels == ("safe", "harm")
    assert described.raw["task_heads"] == {"classification": {"labels": ["safe", "harm"]}}
    model = build_model(described, folder, heads_may_be_new=True)
    assert model.heads["classification"].weight.shape == (2, 16)
    assert with_heads(bare, settings_of(folder, "reasoning")).config.task_heads.has_reasoning
    assert with_heads(bare, settings_of(folder, "sft")) is bare


@pytest.mark.parametrize(
    ("heads", "labels", "text"),
    [
        ({}, None, "expected objective.labels"),
        ({"classification": {"labels": ["a", "b"]}}, ["a", "c"], "the model's labels are a, b"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, small_folder, heads, labels, text):
    raw = json.loads((small_folder / "config.json").read_text())
    description = ModelDescription.parse({**raw, "task_heads": heads})
    with pytest.raises(TrainingError, match=text):
        with_heads(description, settings_of(tmp_path, {"kind": "classification", "labels": labels}))

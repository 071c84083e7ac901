"""The Fisher information against closed forms of it, and its file."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch.nn import functional as F

from tests.support.small_training import make_batch
from tests.training.objectives.test_heads import settings_of
from training.batch import IGNORED
from training.continual import fisher
from training.errors import TrainingError
from training.objectives.language_model import LanguageModel
from training.objectives.objective import make

LENGTHS, LABELS = [5, 9, 3, 7], [0, 2, 1, 2]


def test_of_a_softmax_layer(small_folder, make_model):
    """With p the probabilities: F of the bias is the mean of (p - y)^2, of the weight the mean of ((p - y) h)^2."""
    model, batch = make_model().eval(), make_batch(LENGTHS, labels=LABELS)
    hidden = model(batch.tokens)[range(4), batch.tokens.lengths_B - 1].detach()
    error = model.heads["classification"](hidden).softmax(-1) - F.one_hot(batch.labels_B, 3)
    found = fisher.measure(model, make(settings_of(small_folder, "classification")), [batch])
    torch.testing.assert_close(found.diagonal["heads.classification.bias"], (error**2).mean(0))
    products = error[:, :, None] * hidden[:, None, :]
    torch.testing.assert_close(found.diagonal["heads.classification.weight"], (products**2).mean(0))
    assert (found.num_sequences, found.count) == (4, 4)
    assert not found.diagonal["lm_head.weight"].any(), "this task does not need it"


def test_of_a_language_model_it_is_of_sequences_for_each_token(make_model):
    model, batches = make_model(), [make_batch(LENGTHS), make_batch([4, 6], seed=1)]
    found = fisher.measure(model, LanguageModel(), batches)
    expected, num_targets = torch.zeros_like(model.lm_head.weight), 0
    for batch in batches:
        hidden, logits = model(batch.tokens), model.logits(model(batch.tokens))
        for row in range(len(batch.targets_BT)):
            learnt = batch.targets_BT[row] != IGNORED
            targets = batch.targets_BT[row][learnt]
            error = logits[row][learnt].softmax(-1) - F.one_hot(targets, 258)
            expected += (error.T @ hidden[row][learnt]).detach() ** 2
            num_targets += len(targets)
    torch.testing.assert_close(found.diagonal["lm_head.weight"], expected.detach() / num_targets)
    assert (found.num_sequences, found.count) == (6, num_targets)


def test_pairs_are_one_sequence(small_folder, make_model):
    objective, model = make(settings_of(small_folder, "dpo")), make_model().eval()
    first, second = make_batch([6, 8], prompt=3), make_batch([5, 4], prompt=3, seed=1)
    found = fisher.measure(model, objective, [first, second], rows=2)
    squares = torch.zeros_like(model.lm_head.weight)
    for pair in (first, second):
        model.zero_grad()
        objective.loss(model, model(pair.tokens), pair).sum.backward()
        squares += model.lm_head.weight.grad**2
    torch.testing.assert_close(found.diagonal["lm_head.weight"], squares / 2)


def test_data_without_anything_to_learn_is_an_error(make_model):
    with pytest.raises(TrainingError, match="nothing that this objective counts"):
        fisher.measure(make_model(), LanguageModel(), [])


@pytest.mark.parametrize("error", [OSError("full"), SafetensorError("full")])
def test_a_file_is_whole_or_not_there(tmp_path, make_model, monkeypatch, error):
    model = make_model()
    found = fisher.measure(model, LanguageModel(), [make_batch([4])])

    def break_off(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(fisher, "save_file", break_off)
    with pytest.raises(TrainingError, match=r"a.fisher cannot be written: full"):
        fisher.save(tmp_path / "a.fisher", found, model)
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_be_written_is_told_before_it_is_measured(tmp_path):
    fisher.check_writable(tmp_path / "new" / "a.fisher")
    assert not list((tmp_path / "new").iterdir())
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/proc/a.fisher"), tmp_path / "pipe" / "a.fisher"):
        with pytest.raises(TrainingError, match=r"cannot be written: "):
            fisher.check_writable(path)
    assert (tmp_path / "pipe").is_fifo()

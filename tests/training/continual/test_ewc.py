"""The penalty's gradient and value, what it refuses, and that it keeps an old task."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.support.small_training import make_batch
from training.continual import fisher
from training.continual.ewc import EWCPenalty, _part
from training.errors import TrainingError
from training.objectives.language_model import LanguageModel

OBJECTIVE = LanguageModel()


@pytest.fixture
def measured(tmp_path, make_model):
    """A model, and the file of what it needs for a task."""
    model = make_model()
    fisher.save(tmp_path / "old.fisher", fisher.measure(model, OBJECTIVE, [make_batch([6, 9])]), model)
    return model, tmp_path / "old.fisher"


def test_value_and_gradient_are_those_of_the_formula(measured, make_model):
    old, path = measured
    model, strength = make_model(), 3.0
    diagonal = fisher.measure(old, OBJECTIVE, [make_batch([6, 9])]).diagonal
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    start = dict(old.named_parameters())
    expected = sum(
        (diagonal[name] * (parameter - start[name].detach()) ** 2).sum() for name, parameter in model.named_parameters()
    )
    (strength / 2 * expected).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    some = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters() if "norm" in name}
    for name, parameter in model.named_parameters():
        parameter.grad = some[name].clone() if name in some else None
    value = sum(EWCPenalty(path, strength, model).add_gradients(model).values())
    assert value == pytest.approx(float(strength / 2 * expected.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        added = parameter.grad - some[name] if name in some else parameter.grad
        torch.testing.assert_close(added, gradients[name], rtol=1e-4, atol=1e-6)


def test_weights_that_have_not_moved_cost_nothing(measured, make_model):
    assert not any(EWCPenalty(measured[1], 1e6, make_model()).add_gradients(make_model()).values())


def test_a_file_of_another_model_or_of_none_is_refused(tmp_path, measured):
    model, path = measured
    with pytest.raises(TrainingError, match="cannot be read"):
        EWCPenalty(tmp_path / "nowhere", 1.0, model)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(TrainingError, match="cannot be read"):
        EWCPenalty(tmp_path / "text", 1.0, model)
    save_file({"fisher.other": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(TrainingError, match="none of this model's parameters"):
        EWCPenalty(tmp_path / "other", 1.0, model)
    with pytest.raises(TrainingError, match=r"has the shape \(16,\) there, and \(8,\) here"):
        EWCPenalty(path, 1.0, torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"norm": torch.nn.RMSNorm(8)})}))


@pytest.mark.parametrize("rows", [8, 5])
def test_a_rank_has_its_part_of_what_is_divided_over_both_axes(rows):
    """FSDP (data, the first axis of the mesh) divides what tensor parallelism has divided."""
    values = torch.arange(rows * 3.0).view(rows, 3)
    for data, tensor in itertools.product(range(2), repeat=2):
        expected = values.chunk(2)[tensor].chunk(2)[data]
        mesh = SimpleNamespace(ndim=2, size=lambda axis: 2, get_coordinate=lambda place=(data, tensor): place)
        placements = SimpleNamespace(dim=0, split_factor=2), SimpleNamespace(dim=0)
        parameter = SimpleNamespace(device_mesh=mesh, placements=placements, to_local=lambda part=expected: part)
        assert torch.equal(_part(values, parameter), expected)


def test_a_task_that_is_held_is_forgotten_by_half_at_most(tmp_path, make_model):
    first, second = make_batch([24] * 4, seed=1), make_batch([24] * 4, seed=2)

    def learn(model, batch, penalty=None):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
        for _ in range(40):
            (OBJECTIVE.loss(model, model(batch.tokens), batch).sum / OBJECTIVE.count(batch)).backward()
            if penalty is not None:
                penalty.add_gradients(model)
            optimizer.step()
            optimizer.zero_grad()
        return model

    @torch.no_grad()
    def loss_of(model, batch):
        model.eval()
        return float(OBJECTIVE.loss(model, model(batch.tokens), batch).sum) / OBJECTIVE.count(batch)

    trained = learn(make_model(), first)
    weights, before = trained.state_dict(), loss_of(trained, first)
    weights = {name: value.clone() for name, value in weights.items()}
    fisher.save(tmp_path / "first.fisher", fisher.measure(trained, OBJECTIVE, [first]), trained)
    plain, held = make_model(), make_model()
    for model in (plain, held):
        model.load_state_dict(weights)
    untaught = loss_of(plain, second)
    learn(plain, second)
    learn(held, second, EWCPenalty(tmp_path / "first.fisher", 300.0, held))
    assert loss_of(plain, first) > before + 0.5, "there is something to forget"
    assert loss_of(held, first) - before < 0.5 * (loss_of(plain, first) - before)
    assert loss_of(held, second) < untaught - 0.5, "and something is learnt"

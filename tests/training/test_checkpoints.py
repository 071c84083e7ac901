from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.support import tiny_recipe
from training import checkpoint_folder
from training.checkpoints import read_run
from training.errors import TrainingError
from training.loop import train
from training.model.build import build_model
from training.model.description import ModelDescription
from training.optimizer import make_optimizer, state_tensors

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    from training.loop import Run


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    module = run.worker.module
    return {**module.state_dict(), **state_tensors(module, run.optimizer)}


@pytest.mark.parametrize("optimizer", ["Lion", "AdamW"])
def test_a_checkpoint_holds_model_optimizer_counts_data_and_random_numbers(tmp_path: Path, optimizer: str) -> None:
    run = tiny_recipe.run(tmp_path, f"optimizer={optimizer}", "total_steps=3", "checkpoint_interval=3")
    run.record = {"learning_rate": 1.0}
    train(run)
    drawn = torch.rand(3)
    again = tiny_recipe.run(tmp_path, f"optimizer={optimizer}", "total_steps=3", resume=True)
    assert torch.equal(torch.rand(3), drawn)
    assert again.state == run.state
    assert again.state.step == 3
    assert again.state.num_tokens == 3 * 33
    assert again.state.data == {"number": 3}
    before, after = _tensors(run), _tensors(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(name.endswith("/exp_avg") for name in after)
    newest = again.checkpoints.newest()
    assert newest is not None
    assert read_run(newest) == {"learning_rate": 1.0}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_recipe.run(tmp_path, "total_steps=4", "checkpoint_interval=1")
    train(run)
    root = run.settings.output / "checkpoints"
    assert list(checkpoint_folder.step_folders(root)) == [4, 3, 2]
    (data,) = (root / "step-00000004" / "tensors").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:-10])
    (root / "step-00000003" / "rank-0.json").unlink()
    with caplog.at_level(logging.WARNING):
        newest = run.checkpoints.newest()
    assert newest == root / "step-00000002"
    assert "step-00000004 is damaged" in caplog.text
    assert "step-00000003 is damaged" in caplog.text


def test_without_a_whole_checkpoint_there_is_none(tmp_path: Path) -> None:
    run = tiny_recipe.run(tmp_path)
    assert run.checkpoints.newest() is None
    (run.settings.output / "checkpoints" / ".writing-step-00000004").mkdir(parents=True)
    assert run.checkpoints.newest() is None


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tiny_recipe.run(tmp_path, "total_steps=3"))
    run = tiny_recipe.run(tmp_path)
    wider = ModelDescription.parse({**tiny_recipe.MODEL, "moe_intermediate_size": 12})
    run.worker.module = build_model(wider, None)
    newest = run.checkpoints.newest()
    assert newest is not None
    with pytest.raises(TrainingError, match="does not fit this model"):
        run.checkpoints.load(newest)


def test_matrices_decay_and_the_rest_does_not(tmp_path: Path) -> None:
    settings = tiny_recipe.settings(tmp_path, "weight_decay=0.5")
    model = build_model(ModelDescription.parse(tiny_recipe.MODEL), None)
    groups = make_optimizer(settings, model).param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {parameter.dim() for parameter in groups[1]["params"]} == {1}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_lion_moves_each_weight_by_the_rate_and_decay(tmp_path: Path) -> None:
    """As the paper has it (arXiv 2302.06675): the sign of beta1 * m + (1 - beta1) * g, then m by beta2."""
    settings = tiny_recipe.settings(tmp_path, "weight_decay=0.5", "learning_rate=0.1", "beta1=0.5", "beta2=0.75")
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[1.0, -2.0]])
    optimizer = make_optimizer(settings, module)
    for gradient in ([4.0, -8.0], [-1.0, -1.0]):
        module.weight.grad = torch.tensor([gradient])
        optimizer.step()
    first = [1.0 * (1 - 0.05) - 0.1, -2.0 * (1 - 0.05) + 0.1]  # m becomes 1, -2
    second = [first[0] * (1 - 0.05) - 0.0, first[1] * (1 - 0.05) + 0.1]  # 0.5 * 1 - 0.5 = 0; -1.5
    assert module.weight.tolist()[0] == pytest.approx(second)


def test_what_cannot_be_written_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_recipe.run(tmp_path, "total_steps=2", "checkpoint_interval=1")

    def fill_the_disk(*_: object, storage_writer: FileSystemWriter, **__: object) -> None:
        assert Path(storage_writer.path).parent.name == ".writing-step-00000001"
        raise OSError("no space left")

    monkeypatch.setattr("training.checkpoints.save", fill_the_disk)
    with pytest.raises(TrainingError, match="checkpoint of step 1 cannot be written: no space left"):
        train(run)
    assert not list((run.settings.output / "checkpoints").iterdir())

from __future__ import annotations

import json
import logging
import math
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support import tiny_recipe
from training import checkpoint_folder
from training.errors import TrainingError
from training.loop import train
from training.objectives.language_model import LanguageModel
from training.objectives.objective import LossSum
from training.optimizer import state_tensors
from training.validation import Validation

if TYPE_CHECKING:
    from pathlib import Path

    from training.batch import Batch
    from training.model.dynamic_moe import DynamicMoE


class _Faulty(LanguageModel):
    """Its loss is NaN in some forward passes, counted from 1."""

    def __init__(self, *faults: int) -> None:
        self._faults, self._calls = faults, 0

    def loss(self, model: DynamicMoE, hidden_BTH: torch.Tensor, batch: Batch) -> LossSum:
        self._calls += 1
        loss = super().loss(model, hidden_BTH, batch)
        return LossSum(loss.sum * math.nan) if self._calls in self._faults else loss


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_goes_on_has_the_same_losses_to_the_bit(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(tiny_recipe.run(whole))
    for resume in (False, True):
        run = tiny_recipe.run(parts, resume=resume)
        run.stream = _EndsAfter(run.stream, 6)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert train(tiny_recipe.run(parts, resume=True))
    assert tiny_recipe.losses(parts) == tiny_recipe.losses(whole)
    assert [line["step"] for line in _metrics(parts)] == list(range(1, 13))


class _EndsAfter:
    """A stream whose process is ended after so many batches."""

    def __init__(self, stream: Any, left: int) -> None:
        self._stream, self._left, self.epoch = stream, left, 0

    def __next__(self) -> Batch:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return next(self._stream)

    def state(self) -> dict[str, Any]:
        return self._stream.state()


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_recipe.run(tmp_path, "total_steps=3", "accumulation_steps=2", objective=_Faulty(4))
    before: dict[str, torch.Tensor] = {}
    step = run.optimizer.step

    def counted() -> None:
        step()
        before.update({name: value.clone() for name, value in state_tensors(run.worker.module, run.optimizer).items()})
        before.update({name: value.clone() for name, value in run.worker.module.state_dict().items()})

    run.optimizer.step = counted  # type: ignore[assignment, method-assign]
    run.settings = run.settings.model_copy(update={"total_steps": 2})
    with caplog.at_level(logging.WARNING):
        train(run)
    after = {**state_tensors(run.worker.module, run.optimizer), **run.worker.module.state_dict()}
    assert all(torch.equal(before[name], after[name]) for name in after), "step 2 left all as step 1 had it"
    assert "step 2 is skipped" in caplog.text
    assert [(line["loss"] is None, line["skipped_steps"]) for line in _metrics(tmp_path)] == [(False, 0), (True, 1)]
    run.settings = run.settings.model_copy(update={"total_steps": 3})
    train(run)
    assert _metrics(tmp_path)[2]["loss"] > 0
    assert run.state.skipped_steps == 1


def test_a_run_of_nothing_but_skipped_steps_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.loop._MOST_SKIPPED", 3)
    run = tiny_recipe.run(tmp_path, objective=_Faulty(*range(2, 100)))
    with pytest.raises(TrainingError, match="3 steps in a row"):
        train(run)
    assert run.state.step == 4


def test_a_step_does_not_depend_on_how_its_rows_are_divided(tmp_path: Path) -> None:
    """Losses are means over a step's tokens, not means of micro batches' means."""
    norms = []
    for rows in ([(20, 13, 5)], [(20,), (13,), (5,)]):
        folder = tmp_path / str(len(rows))
        run = tiny_recipe.run(folder, "total_steps=1", "warmup_steps=0", f"accumulation_steps={len(rows)}")
        whole = tiny_recipe.batch(1, (20, 13, 5))
        run.stream = _Rows(whole, rows)
        run.worker.module.eval()
        train(run)
        norms.append(_metrics(folder)[0])
    assert norms[0]["loss"] == pytest.approx(norms[1]["loss"], rel=1e-6)
    assert norms[0]["gradient_norm"] == pytest.approx(norms[1]["gradient_norm"], rel=1e-5)
    assert norms[0]["tokens"] == norms[1]["tokens"] == 38


class _Rows:
    """The rows of one batch, in batches of these lengths."""

    epoch = 0

    def __init__(self, whole: Batch, lengths: list[tuple[int, ...]]) -> None:
        self._parts = []
        first = 0
        for part in lengths:
            rows = slice(first, first + len(part))
            tokens = whole.tokens
            self._parts.append(
                type(whole)(
                    type(tokens)(tokens.token_ids_BT[rows], tokens.modality_ids_BT[rows], tokens.lengths_B[rows]),
                    whole.targets_BT[rows],
                )
            )
            first += len(part)

    def __next__(self) -> Batch:
        return self._parts.pop(0)

    def state(self) -> dict[str, Any]:
        return {}


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path: Path) -> None:
    run = tiny_recipe.run(tmp_path)

    class Signals(tiny_recipe.RandomStream):
        def __next__(self) -> Batch:
            if self.number == 1:
                signal.raise_signal(signal.SIGTERM)
            return super().__next__()

    run.stream = Signals()
    with run.interrupt.listen():
        assert not train(run)
    assert run.interrupt.signal == signal.SIGTERM
    assert list(checkpoint_folder.step_folders(run.settings.output / "checkpoints")) == [2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_come_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    run = tiny_recipe.run(tmp_path, "total_steps=11", "keep_last=2")
    train(run)
    root = run.settings.output / "checkpoints"
    assert list(checkpoint_folder.step_folders(root)) == [11, 8]
    assert train(tiny_recipe.run(tmp_path, "total_steps=11", resume=True)), "there is nothing left to do"
    assert len(_metrics(tmp_path)) == 11


def test_gradients_are_clipped(tmp_path: Path) -> None:
    seen = []
    for clipping in (0.0, 0.01):
        folder = tmp_path / str(clipping)
        run = tiny_recipe.run(folder, "total_steps=1", f"gradient_clipping={clipping}")
        gradients: list[torch.Tensor] = []
        run.optimizer.step = lambda module=run.worker.module, kept=gradients: kept.extend(  # type: ignore[assignment, method-assign, misc]
            p.grad.flatten() for p in module.parameters() if p.grad is not None
        )
        train(run)
        seen.append((float(torch.cat(gradients).norm()), _metrics(folder)[0]["gradient_norm"]))
    assert seen[0][0] == pytest.approx(seen[0][1], rel=1e-4)
    assert seen[1] == (pytest.approx(0.01, rel=1e-3), pytest.approx(seen[0][1]))


def test_a_penalty_adds_gradients_and_is_shown(tmp_path: Path) -> None:
    class Penalty:
        def add_gradients(self, module: torch.nn.Module) -> dict[str, float]:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(1.0)
            return {"one": 3.0, "other": 4.0}

    run = tiny_recipe.run(tmp_path, "total_steps=1", penalty=Penalty())
    train(run)
    (line,) = _metrics(tmp_path)
    size = sum(p.numel() for name, p in run.worker.module.named_parameters())
    assert line["penalty"] == 7.0
    assert line["gradient_norm"] == pytest.approx(size**0.5, rel=1e-4)


def test_held_out_loss_is_taken_at_intervals_and_changes_nothing(tmp_path: Path) -> None:
    validation = Validation([tiny_recipe.batch(100), tiny_recipe.batch(101)], interval=2)
    train(tiny_recipe.run(tmp_path / "with", "total_steps=5", validation=validation))
    train(tiny_recipe.run(tmp_path / "without", "total_steps=5"))
    lines = _metrics(tmp_path / "with")
    assert ["validation_loss" in line for line in lines] == [False, True, False, True, True]
    assert lines[1]["validation_loss"] == pytest.approx(math.log(258), rel=0.05)
    assert tiny_recipe.losses(tmp_path / "with") == tiny_recipe.losses(tmp_path / "without")


def test_metrics_tell_of_speed_and_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_recipe.run(tmp_path, "total_steps=2"))
    line = _metrics(tmp_path)[1]
    assert line["tokens"] == 33
    assert 0 < line["mfu"] < 1
    assert 0 <= line["expert_load_min"] <= 1 <= line["expert_load_max"] <= 4
    assert 0 <= line["dropped"] < 1
    assert line["balance_loss"] == pytest.approx(1, rel=0.2)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("step 1/2  loss ")
    for part in ("lr ", "norm ", "tokens/s", "MFU ", "experts ", "dropped "):
        assert part in shown[0]


@pytest.mark.parametrize("total_steps", [3, 9])
def test_weights_that_are_not_finite_are_in_no_checkpoint(tmp_path: Path, total_steps: int) -> None:
    run = tiny_recipe.run(tmp_path, f"total_steps={total_steps}", "checkpoint_interval=1")
    step, weight = run.optimizer.step, run.worker.module.model.norm.weight

    def overflow() -> None:
        step()
        if run.state.step == 2:  # the third step, which is not counted yet
            weight.data[0] = math.inf

    run.optimizer.step = overflow  # type: ignore[assignment,method-assign]
    with pytest.raises(TrainingError, match="weights are not finite after step 3"):
        train(run)
    assert list(checkpoint_folder.step_folders(run.settings.output / "checkpoints")) == [2, 1]


def test_a_run_whose_every_step_is_skipped_is_an_error(tmp_path: Path) -> None:
    run = tiny_recipe.run(tmp_path, "total_steps=2", objective=_Faulty(1, 2))
    with pytest.raises(TrainingError, match="all 2 steps were skipped"):
        train(run)
    assert not checkpoint_folder.step_folders(run.settings.output / "checkpoints")


def test_a_checkpoint_whose_weights_are_not_finite_is_no_start_and_no_end(tmp_path: Path) -> None:
    run = tiny_recipe.run(tmp_path, "total_steps=2")
    train(run)
    with torch.no_grad():
        run.worker.module.model.norm.weight[0] = math.nan
    with pytest.raises(TrainingError, match="weights are not finite after step 2"):
        train(run)

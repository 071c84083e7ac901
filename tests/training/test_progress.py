from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.progress import MetricsFile, Progress

if TYPE_CHECKING:
    from pathlib import Path

METRICS = {"loss": 2.0, "learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": 0.5, "tokens": 100.0, "mfu": 0.25}


def _add(progress: Progress, step: int, loss: float) -> None:
    progress.add(step, {**METRICS, "loss": loss, "skipped_steps": 0.0})


def test_what_follows_the_checkpoint_is_dropped_and_half_a_line_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 9.0}\n{"step": 4, "lo')
    file = MetricsFile(path, 2)
    file.add(3, {"loss": 3.0})
    file.add(4, {"loss": float("nan")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 3.0},
        {"step": 4, "loss": None},
    ]


def test_a_new_run_has_none_of_an_old_one_s_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n[]\n{"step": "x"}\n')
    MetricsFile(path, 0)
    assert path.read_text() == ""


def test_lines_come_at_intervals_with_speed_since_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(tmp_path, first_step=1, total_steps=5, log_interval=2) as progress:
        for step in range(1, 6):
            _add(progress, step, 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "4/5", "5/5"]
    assert all("200 tokens/s" in line and "MFU 25.0%" in line for line in lines)
    assert lines[0].endswith("0:00:02 left")


def test_a_held_out_loss_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(tmp_path, first_step=1, total_steps=9, log_interval=9) as progress:
        _add(progress, 1, 3.0)
        _add(progress, 2, 3.0)
        progress.add(3, {**METRICS, "skipped_steps": 1.0, "validation_loss": 2.5})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/9", "3/9"]
    assert "validation_loss 2.5000" in lines[1]
    assert "skipped 1" in lines[1]


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path: Path) -> None:
    with Progress(tmp_path, first_step=1, total_steps=9, log_interval=9) as progress:
        for step in range(1, 6):
            _add(progress, step, 1.0)
    with Progress(tmp_path, first_step=4, total_steps=9, log_interval=9) as progress:
        for step in range(4, 8):
            _add(progress, step, 2.0)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in curves.Scalars("loss")] == [
        *((step, 1.0) for step in (1, 2, 3)),
        *((step, 2.0) for step in (4, 5, 6, 7)),
    ]


def test_other_ranks_say_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None, first_step=1, total_steps=1, log_interval=1) as progress:
        _add(progress, 1, 1.0)
        progress.say("hello")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())

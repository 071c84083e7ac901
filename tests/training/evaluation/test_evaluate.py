"""All benchmarks of a run: what is wrong in one is said before another is asked. A list stands for the harness."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from training.errors import TrainingError
from training.evaluation import evaluate
from training.evaluation.harness import Score
from training.evaluation.served import Served
from training.evaluation.unavailable import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

SERVED = Served("http://127.0.0.1:9", "tiny", 64)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that were asked; those called `unknown` are no tasks."""
    asked: list[Any] = []

    class Recorder:
        def __init__(self, *_: object) -> None: ...

        def check(self, task: object) -> None:
            if task == "unknown":
                raise TrainingError("'unknown' is no task")
            if task == "missing":
                raise UnavailableError("missing is not here")

        def evaluate(self, task: object, _: object) -> Score:
            asked.append(task)
            return Score("acc,none", 0.5, None, 2)

    monkeypatch.setattr(evaluate, "Harness", Recorder)
    return asked


def test_a_wrong_file_ends_all_before_anything_is_asked(asked: list[Any], tmp_path: Path) -> None:
    for name, row in (("mmlu/test/anatomy_test.csv", "Which?,a,b,c,d,A\n"), ("gsm8k/test.jsonl", json.dumps(["?"]))):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(row)
    with pytest.raises(TrainingError, match=r"test\.jsonl, row 1"):
        evaluate.evaluate(SERVED, evaluate.Wanted(("MMLU", "GSM8K"), tmp_path))
    assert asked == []


def test_an_unknown_task_ends_all_before_anything_is_asked(asked: list[Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no task"):
        evaluate.evaluate(SERVED, evaluate.Wanted(("tasks",), tmp_path, ["known", "unknown"]))
    assert asked == []


def test_what_is_missing_is_a_row_between_those_that_are_asked(asked: list[Any], tmp_path: Path) -> None:
    rows = evaluate.evaluate(SERVED, evaluate.Wanted(("GSM8K", "tasks"), tmp_path, ["one", "missing", "two"]))
    assert [(row.benchmark, row.value) for row in rows] == [
        ("GSM8K", None), ("one", 50.0), ("missing", None), ("two", 50.0),
    ]  # fmt: skip
    assert asked == ["one", "two"]

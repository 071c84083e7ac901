"""lm-eval through the API of a real server. Needs the extra `evaluate`: make evaluate-test."""

from __future__ import annotations

import dataclasses
import gc
import json
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("lm_eval")
import aiohttp

from tests.support import tiny_dynamic_moe
from training.errors import TrainingError
from training.evaluation import cli, humaneval, sandbox
from training.evaluation.harness import TASKS, Harness
from training.evaluation.served import Served, started
from training.evaluation.unavailable import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("default")  # of lm-eval's and its packages' own


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = tiny_dynamic_moe.write(tmp_path_factory.mktemp("model") / "tiny", "mixed")
    with started(str(model)) as server:
        yield server


@pytest.fixture(scope="module")
def harness(served: Served) -> Harness:
    return Harness(served, concurrency=4, limit=4)


def test_all_canonical_solutions_of_humaneval_pass_in_the_sandbox() -> None:
    problems = humaneval.problems()
    assert len(problems) == 164
    failed = [
        problem["task_id"]
        for problem in problems
        if not humaneval.judge(problem, [problem["canonical_solution"]])["pass@1"]
    ]
    assert failed == []
    assert humaneval.judge(problems[0], ["    return None\n"]) == {"pass@1": 0.0}


def test_every_kind_of_benchmark_has_a_row(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("train", 5), ("test", 2)):
        path = tmp_path / "gsm8k" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n" for n in range(rows)))
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "test" / "anatomy_test.csv").write_text('"Which?",a,b,c,d,A\n"What?",a,b,c,d,C\n')
    out = tmp_path / "scores.json"
    flags = ["--url", served.url, "--data", str(tmp_path), "--limit", "2", "--concurrency", "4", "--out", str(out)]
    assert cli.main(flags) == 0
    rows = {row["benchmark"]: row for row in json.loads(out.read_text())["benchmarks"]}
    assert {name: row["samples"] for name, row in rows.items()} == {
        "MMLU": 2, "GSM8K": 2, "HumanEval": 2, "python_questions": 2, "sums": 2, "latency per token": 4,
    }  # fmt: skip
    assert all(row["measured_here"] for row in rows.values())
    assert "| MMLU |" in capsys.readouterr().out


def test_missing_data_is_a_row_that_says_what_belongs_where(served: Served, tmp_path: Path, capsys: Any) -> None:
    flags = ["--url", served.url, "--data", str(tmp_path), "--only", "MMLU", "tasks", "--tasks", "arc_easy"]
    assert cli.main(flags) == 0
    table = capsys.readouterr().out
    assert f"| MMLU | not measured | 68.9 % | MMLU needs dev and test files in {tmp_path}" in table
    assert "| arc_easy | not measured |  | the data of arc_easy is not on this machine" in table


def test_unknown_tasks_and_unreadable_files_are_errors(harness: Harness, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="neither a task of lm-eval"):
        harness.load("no_such_task")
    with pytest.raises(UnavailableError, match="no_such_file"):
        harness.load(str(tmp_path / "no_such_file.yaml"))


def test_a_request_that_the_server_refuses_is_an_error_that_says_so(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Harness(dataclasses.replace(served, model="another"), concurrency=4, limit=4)
    with pytest.raises(TrainingError, match="did not answer lm-eval: 404"):
        stranger.evaluate(str(TASKS / "sums.yaml"))
    gc.collect()  # and the requests beside it are not told of
    assert "never retrieved" not in caplog.text


def test_a_server_that_ends_amid_a_request_is_an_error(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object, **__: object) -> None:
        raise aiohttp.ServerDisconnectedError

    monkeypatch.setattr("lm_eval.simple_evaluate", end)
    with pytest.raises(TrainingError, match="did not answer lm-eval: Server disconnected"):
        harness.evaluate(str(TASKS / "sums.yaml"))


def test_where_nothing_can_be_confined_humaneval_is_not_measured(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sandbox.SandboxError("there is no Landlock")

    monkeypatch.setattr(sandbox, "run", refuse)
    assert cli.main(["--url", served.url, "--only", "HumanEval"]) == 0
    assert "| HumanEval | not measured | 45.7 % | there is no Landlock |" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--url", "http://127.0.0.1:9", "--only", "latency"]) == 2
    assert "cannot be reached" in capsys.readouterr().err

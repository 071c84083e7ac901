"""The table and the JSON of an evaluation."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from training.errors import TrainingError
from training.evaluation import cli, report
from training.evaluation.report import Row
from training.evaluation.served import Served

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    Row("MMLU", None, "%", "MMLU needs files"),
    Row("HumanEval", 12.5, "%", "pass@1, 164 questions", error=2.6, samples=164, seconds=60.0),
    Row("latency per token", 7.25, "ms", "one request at a time"),
    Row("sums", 50.0, "%", "40 questions"),
]


def test_each_figure_stands_beside_the_articles() -> None:
    table = report.as_table("tiny", ROWS)
    assert "| MMLU | not measured | 68.9 % | MMLU needs files |" in table
    assert "| HumanEval | 12.5 ± 2.6 % | 45.7 % | pass@1, 164 questions |" in table
    assert "| latency per token | 7.2 ms | 38.0 ms |" in table
    assert "| sums | 50.0 % |  | 40 questions |" in table


def test_the_json_says_what_was_measured_here(tmp_path: Path) -> None:
    report.write(tmp_path / "new" / "scores.json", report.as_json("tiny", ROWS))
    figures = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert figures["model"] == "tiny"
    found = {row["benchmark"]: (row["measured_here"], row["value"], row["article"]) for row in figures["benchmarks"]}
    assert found["MMLU"] == (False, None, {"DeepSeek-7B": 68.9, "LLaMA2-7B": 63.5, "GPT-3.5": 70.1})
    assert found["latency per token"][:2] == (True, 7.25)
    assert found["sums"] == (True, 50.0, None)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "evaluate", lambda *_: pytest.fail("the server was asked"))
    monkeypatch.setattr("training.evaluation.served.at", lambda *_: pytest.fail("the server was looked for"))
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "scores.json", tmp_path / ("x" * 300), "/proc/x/y.json"):
        assert cli.main(["--url", "http://127.0.0.1:9", "--out", str(place)]) == 2
        assert capsys.readouterr().err.startswith(f"evaluate: error: {place} ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for name in ("fifo", "link"):
        with pytest.raises(TrainingError, match="no file that could be replaced"):
            report.check(tmp_path / name)
    (tmp_path / "scores.json").write_text("old")
    report.check(tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_text() == "old"


def test_the_table_is_printed_before_a_disk_that_is_full_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.evaluation.served.at", lambda *_: Served("http://127.0.0.1:9", "tiny", 64))
    monkeypatch.setattr(cli, "evaluate", lambda *_: ROWS)
    monkeypatch.setattr("pathlib.Path.write_text", fill)
    assert cli.main(["--url", "http://127.0.0.1:9", "--out", str(tmp_path / "scores.json")]) == 2
    printed = capsys.readouterr()
    assert "| HumanEval | 12.5 ± 2.6 % |" in printed.out
    assert printed.err == f"evaluate: error: {tmp_path}/scores.json cannot be written: No space left on device\n"
    assert [*tmp_path.iterdir()] == []

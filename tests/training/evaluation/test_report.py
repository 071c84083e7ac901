"""The table and the JSON of an evaluation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from training.evaluation import report
from training.evaluation.report import Row

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

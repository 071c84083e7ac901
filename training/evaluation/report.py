"""What an evaluation found, beside the article's figures: one table for people, one JSON for programs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ARTICLE = {  # its table; percent, and milliseconds a token
    "MMLU": {"DeepSeek-7B": 68.9, "LLaMA2-7B": 63.5, "GPT-3.5": 70.1},
    "GSM8K": {"DeepSeek-7B": 78.3, "LLaMA2-7B": 56.2, "GPT-3.5": 79.5},
    "HumanEval": {"DeepSeek-7B": 45.7, "LLaMA2-7B": 31.2, "GPT-3.5": 48.1},
    "latency per token": {"DeepSeek-7B": 38.0, "LLaMA2-7B": 45.0, "GPT-3.5": 25.0},
}


@dataclass(frozen=True)
class Row:
    """One benchmark of this model.

    Attributes:
        value: in `unit`; None if it was not measured here.
        note: over what it was measured, or why it was not.
    """

    benchmark: str
    value: float | None
    unit: str
    note: str
    error: float | None = None
    samples: int | None = None
    seconds: float | None = None


def as_json(model: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures, the article's beside them, and which of them were measured here."""
    benchmarks = [
        {**asdict(row), "measured_here": row.value is not None, "article": ARTICLE.get(row.benchmark)} for row in rows
    ]
    return {"model": model, "benchmarks": benchmarks}


def as_table(model: str, rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    lines = [
        f"| benchmark | {model}, measured here | the article's DeepSeek-7B, not measured here | note |",
        "|---|---|---|---|",
    ]
    for row in rows:
        article = ARTICLE.get(row.benchmark, {}).get("DeepSeek-7B")
        theirs = "" if article is None else f"{article:.1f} {row.unit}"
        lines.append(f"| {row.benchmark} | {_shown(row)} | {theirs} | {row.note} |")
    return "\n".join(lines) + "\n"


def check(path: Path) -> None:
    """See that a file can be written or replaced there, and make its folder.

    Raises:
        TrainingError: it cannot; the text says why.
    """
    try:
        if path.exists() and not path.is_file():  # a device would be replaced by a file
            raise TrainingError(f"{path} is there, and is no file that could be replaced")
        _unfinished(path).touch()
        _unfinished(path).unlink()
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from None


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write the JSON file whole, or not at all."""
    unfinished = _unfinished(path)
    try:
        unfinished.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _unfinished(path: Path) -> Path:
    """Where a file is written before it takes its place; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")


def _shown(row: Row) -> str:
    if row.value is None:
        return "not measured"
    error = "" if row.error is None else f" ± {row.error:.1f}"
    return f"{row.value:.1f}{error} {row.unit}"

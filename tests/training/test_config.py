from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.errors import ConfigError
from tests.support import tiny_recipe
from training.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("total_steps=1000000000001", "at most 1000000000000"),
        ("validation={files: [a.jsonl], micro_batches: 100000000000000000000}", "at most 1048576"),
        ("learning_rate=1e300", "at most 1000000.0"),
        ("weight_decay=1e300", "at most 1000000.0"),
        ("gradient_clipping=1e300", "at most 1000000.0"),
        ("ewc={fisher: f, strength: 1e300}", "at most 1000000.0"),
        ("parallelism.tensor=100000000000000000000", "at most 1048576"),
    ],
)
def test_numbers_that_arithmetic_has_no_room_for_are_refused(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"; expected {expected}$"):
        tiny_recipe.settings(tmp_path, override)


def test_the_longest_run_tells_of_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"loss": 2.0, "learning_rate": 1.0, "gradient_norm": 1.0, "seconds": 1e5, "tokens": 1.0, "mfu": 0.1}
    with Progress(tmp_path, first_step=1, total_steps=10**12, log_interval=1) as progress:
        progress.add(1, {**metrics, "skipped_steps": 0.0})
    assert capsys.readouterr().out.rstrip().endswith("left")

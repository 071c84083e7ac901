"""What a run says of itself: a line every few steps, metrics.jsonl with every step, and TensorBoard's curves."""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

Metrics = Mapping[str, float]
_SUMMED = ("seconds", "tokens", "peak_seconds")  # the last one: seconds at the peak that the arithmetic would take
_LONGEST = datetime.timedelta.max.total_seconds() - 1
_KNOWN = {  # what a line shows in its own way, or not at all; the rest is an objective's own, and shown as it is
    *("loss", "learning_rate", "gradient_norm", "seconds", "tokens", "total_tokens", "mfu", "epoch", "skipped_steps"),
    *("expert_load_min", "expert_load_max", "dropped", "balance_loss"),
}


class MetricsFile:
    """metrics.jsonl: an object for each step, appended. Lines after the step that a run goes on from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in _lines(path) if _step_of(line) in range(1, step + 1)]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(path)
        self._path = path

    def add(self, step: int, metrics: Metrics) -> None:
        """Append one step; a number that JSON does not have (NaN) becomes null."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


class Progress:
    """Tells of steps. Ranks other than the main one have a silent one (`output` None)."""

    def __init__(self, output: Path | None, *, first_step: int, total_steps: int, log_interval: int) -> None:
        self._first, self._total, self._interval = first_step, total_steps, log_interval
        self._sums = dict.fromkeys(_SUMMED, 0.0)  # since the last line
        self._steps = 0
        self._file: MetricsFile | None = None
        if output is not None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            from torch.utils.tensorboard import SummaryWriter

            self._file = MetricsFile(output / "metrics.jsonl", first_step - 1)
            self._curves = SummaryWriter(str(output / "tensorboard"), purge_step=first_step, flush_secs=10)

    def __enter__(self) -> Self:
        """Open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write what TensorBoard's writer still holds."""
        if self._file is not None:
            self._curves.close()

    def add(self, step: int, metrics: Metrics) -> None:
        """Tell of one step; speeds in a line are means since the last line."""
        if self._file is None:
            return
        self._file.add(step, metrics)
        for name, value in metrics.items():
            self._curves.add_scalar(name, value, step)
        for name, value in (*metrics.items(), ("peak_seconds", metrics["mfu"] * metrics["seconds"])):
            if name in self._sums:
                self._sums[name] += value
        self._steps += 1
        if step % self._interval == 0 or step in (self._first, self._total) or "validation_loss" in metrics:
            self.say(self._line(step, metrics))
            self._sums = dict.fromkeys(_SUMMED, 0.0)
            self._steps = 0

    def say(self, text: str) -> None:
        """Print a line, on the main rank."""
        if self._file is not None:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def _line(self, step: int, metrics: Mapping[str, float]) -> str:
        seconds, tokens, peak_seconds = self._sums.values()
        left = min((self._total - step) * seconds / self._steps, _LONGEST)
        parts = [
            f"step {step}/{self._total}",
            f"loss {metrics['loss']:.4f}",
            *(f"{name} {value:.4f}" for name, value in metrics.items() if name not in _KNOWN),
            f"lr {metrics['learning_rate']:.2e}",
            f"norm {metrics['gradient_norm']:.2f}",
            f"{tokens / seconds:,.0f} tokens/s",
            f"MFU {peak_seconds / seconds:.1%}",
        ]
        if "expert_load_max" in metrics:
            parts.append(f"experts {metrics['expert_load_min']:.2f}-{metrics['expert_load_max']:.2f}")
            parts.append(f"dropped {metrics['dropped']:.1%}")
        if metrics["skipped_steps"]:
            parts.append(f"skipped {metrics['skipped_steps']:.0f}")
        return "  ".join([*parts, f"{datetime.timedelta(seconds=round(left))} left"])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _step_of(line: str) -> int:
    """The step of a line; 0 if the process was killed while it wrote the line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0

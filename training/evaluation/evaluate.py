"""Asks a served model all benchmarks that are wanted: a row for each, also for those that cannot be measured here."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation import humaneval, latency, local_data
from training.evaluation.harness import TASKS, Harness
from training.evaluation.report import Row
from training.evaluation.unavailable import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.evaluation.served import Served

_Task = str | dict[str, Any] | UnavailableError  # of lm-eval: a name, a file, a configuration; or what is missing
BENCHMARKS = ("MMLU", "GSM8K", "HumanEval", "tasks", "latency")


@dataclass(frozen=True)
class Wanted:
    """What is asked.

    Attributes:
        only: of BENCHMARKS.
        data: the folder with mmlu/ and gsm8k/.
        tasks: of lm-eval: names or files; None: this project's own.
        limit: questions of each task; None: all.
        concurrency: requests at a time.
    """

    only: tuple[str, ...]
    data: Path
    tasks: Sequence[str] | None = None
    limit: int | None = None
    concurrency: int = 16


def evaluate(server: Served, wanted: Wanted) -> list[Row]:
    """Return the rows; one whose data is missing says so.

    Raises:
        DeepseekServeError: the server does not answer, or a task is wrong.
    """
    harness = functools.cache(lambda: Harness(server, wanted.concurrency, wanted.limit))
    tasks: list[tuple[str, _Task, str | None]] = []

    def add(name: str, task: Callable[[], str | dict[str, Any]], metric: str | None) -> None:
        tasks.append((name, _checked(harness, task), metric))

    if "MMLU" in wanted.only:
        add("MMLU", lambda: local_data.mmlu(wanted.data), "acc,none")
    if "GSM8K" in wanted.only:
        add("GSM8K", lambda: local_data.gsm8k(wanted.data), "exact_match,flexible-extract")
    if "HumanEval" in wanted.only:
        add("HumanEval", lambda: humaneval.task(server.max_length), "pass@1,none")
    if "tasks" in wanted.only:
        for name in wanted.tasks if wanted.tasks is not None else sorted(map(str, TASKS.glob("*.yaml"))):
            add(Path(name).stem, functools.partial(str, name), None)
    rows = [_benchmark(name, harness, task, metric) for name, task, metric in tasks]
    if "latency" in wanted.only:
        rows.append(_latency(server))
    return rows


def _checked(harness: Callable[[], Harness], task: Callable[[], str | dict[str, Any]]) -> _Task:
    """Return a task, or what is missing for it. All are checked before one is asked: what is wrong ends all."""
    try:
        found = task()
        harness().check(found)
    except UnavailableError as error:
        return error
    return found


def _benchmark(name: str, harness: Callable[[], Harness], task: _Task, metric: str | None) -> Row:
    started = time.monotonic()
    try:
        if isinstance(task, UnavailableError):
            raise task
        score = harness().evaluate(task, metric)
    except UnavailableError as error:
        sys.stderr.write(f"{name} is not measured: {error}\n")
        return Row(name, None, "%", str(error))
    note = f"{score.metric.removesuffix(',none')}, {score.samples} questions"
    percent = None if score.error is None else 100 * score.error
    return Row(name, 100 * score.value, "%", note, percent, score.samples, time.monotonic() - started)


def _latency(server: Served) -> Row:
    started = time.monotonic()
    figures = latency.measure(server)
    note = f"one request at a time, median of {figures['requests']}; {figures['ttft_milliseconds']:.1f} ms to the first"
    seconds = time.monotonic() - started
    return Row("latency per token", figures["milliseconds"], "ms", note, samples=figures["requests"], seconds=seconds)

"""Each thing that chaos can show makes the verdict fail, and nothing else does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.chaos.planted import sitecustomize as plants
from tests.chaos.run import CATCHES
from tests.chaos.verdict import Observations, TenTimes, figures, passed, quantile, table

AT_10X = TenTimes(100.0, 95.0, [0.01] * 99 + [3.0], [0.01] * 99 + [0.4])
GOOD: dict[str, Any] = {
    "aborted": 50,
    "answered": {200: 90, 400: 10},
    "canaries": 5,
    "deaths_noticed": [0.1, 0.3],
    "hangs_noticed": [5.0],
    "probes": [0.01] * 99 + [0.4],
    "at_10x": AT_10X,
    "raw_at_10x": TenTimes(100.0, 50.0, [1.0], [1.0], ["none"]),
    "memory_before": 100 << 20,
    "memory_after": 150 << 20,
    "memory_most": 290 << 20,
    "engine_memory_before": 300 << 20,
    "engine_memory_most": 350 << 20,
    "idle_cpu": 0.01,
    "idle_wakes": 4.0,
    "kills": 2,
    "recovered": 2,
    "simulation": True,
    "preemption": True,
}
BAD: list[tuple[int, dict[str, Any]]] = [
    (1, {"leaked": 0.001}),
    (2, {"errors": ["status 500"]}),
    (3, {"deaths": 1}),
    (3, {"wrong": ["0: [1, 2]"]}),
    (4, {"deaths_noticed": [0.1, 5.1]}),
    (4, {"hangs_noticed": [61.0]}),
    (5, {"probes": [0.01] * 98 + [0.2] * 2}),
    (5, {"probes": [0.01] * 99 + [0.6]}),
    (5, {"idle_cpu": 0.2}),
    (5, {"idle_wakes": 200.0}),
    (5, {"at_10x": dataclasses.replace(AT_10X, probes=[0.01] * 98 + [0.2] * 2)}),
    (2, {"at_10x": dataclasses.replace(AT_10X, errors=["closed at 10x, 2 times"])}),
    (6, {"at_10x": dataclasses.replace(AT_10X, refusals=[0.01] * 98 + [0.2] * 2)}),
    (6, {"at_10x": dataclasses.replace(AT_10X, goodput=89.0)}),
    (7, {"memory_after": 201 << 20}),
    (7, {"memory_most": 301 << 20}),
    (7, {"engine_memory_most": 501 << 20}),
    (9, {"stuck": ["3 wait for 5 s"]}),
    (8, {"recovered": 1}),
    (8, {"unanswered": ["a stream without an end"]}),
    (8, {"orphans": ["process python -m engine.process"]}),
    (9, {"simulation": False}),
    (10, {"preemption": False}),
]


def test_a_good_run_passes() -> None:
    seen = Observations(**GOOD)
    assert passed(seen)
    assert {figure.number for figure in figures(seen)} == set(range(1, 11))
    assert "FAILED" not in table(seen)


@pytest.mark.parametrize(("number", "change"), BAD, ids=lambda value: str(value)[:40])
def test_each_figure_can_fail(number: int, change: dict[str, Any]) -> None:
    seen = dataclasses.replace(Observations(**GOOD), **change)
    assert [figure.number for figure in figures(seen) if figure.passed is False] == [number]
    assert not passed(seen)
    assert table(seen).count("FAILED") == 1


def test_every_figure_has_a_case_above_and_what_is_planted_a_figure() -> None:
    assert {number for number, _ in BAD} == set(range(1, 11))
    assert CATCHES.keys() == plants.IN_ENGINE.keys() | plants.IN_SERVER.keys()


def test_what_was_not_measured_neither_passes_nor_fails() -> None:
    seen = Observations()
    assert passed(seen)
    assert sum(figure.passed is None for figure in figures(seen)) == 14


def test_a_quantile_is_one_of_the_values() -> None:
    assert (quantile([3.0, 1.0, 2.0], 0.5), quantile([1.0], 0.99), quantile([1.0, 2.0], 1.0)) == (2.0, 1.0, 2.0)

"""What a run of chaos has seen, and the verdict: ten figures, each with the most (or least) that is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_MIB = 1 << 20


@dataclass
class Observations:
    """What was seen. Times are seconds, sizes bytes.

    Attributes:
        aborted: requests whose clients left; leaked is the share of the KV cache that is held when nothing runs.
        answered: statuses of answers and how often each came; errors are the 5xx that no disturbance explains.
        unanswered: well-behaved requests that got no answer, or one without an end.
        deaths: ends of the engine that no disturbance explains.
        canaries: streams whose tokens were compared; wrong are those with other tokens than in a quiet run.
        deaths_noticed, hangs_noticed: how long each took to be noticed.
        probes: how long each probe took.
        refusals: how long each refusal at ten times the load took; goodput is tokens a second then, and at the peak.
        memory_before, memory_after: of the server, warm and after all of it.
        kills, recovered: of the engine; orphans are processes and files that outlived the server.
        simulation, preemption: whether the tests of the batcher and of preempted sequences passed; None if not run.
    """

    aborted: int = 0
    leaked: float = 0.0
    answered: dict[int, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    deaths: int = 0
    canaries: int = 0
    wrong: list[str] = field(default_factory=list)
    deaths_noticed: list[float] = field(default_factory=list)
    hangs_noticed: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    goodput: float = math.nan
    peak_goodput: float = math.nan
    memory_before: int = 0
    memory_after: int = 0
    kills: int = 0
    recovered: int = 0
    orphans: list[str] = field(default_factory=list)
    simulation: bool | None = None
    preemption: bool | None = None
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """One line of the verdict; `passed` is None for what was not measured."""

    number: int
    what: str
    value: str
    wanted: str
    passed: bool | None


def figures(seen: Observations) -> list[Figure]:
    """The ten figures."""
    kills, wrong = f"{seen.recovered} of {seen.kills}", f"wrong tokens in {seen.canaries} canaries"
    growth = (seen.memory_after - seen.memory_before) / _MIB
    ratio = seen.goodput / seen.peak_goodput if seen.peak_goodput else math.nan
    return [
        Figure(1, f"KV cache leaked after {seen.aborted} aborts", f"{seen.leaked:.2%}", "0", seen.leaked == 0),
        Figure(2, f"5xx of {sum(seen.answered.values())} answers", _few(seen.errors), "0", not seen.errors),
        Figure(3, "engine deaths from a request", str(seen.deaths), "0", seen.deaths == 0),
        Figure(3, wrong, _few(seen.wrong), "0", _some(seen.canaries, not seen.wrong)),
        _times(4, "a death noticed in", seen.deaths_noticed, 1.0, 5.0),
        _times(4, "a hang noticed in", seen.hangs_noticed, 1.0, 60.0),
        _times(5, "probes, p99", seen.probes, 0.99, 0.1),
        _times(5, "probes, the slowest", seen.probes, 1.0, 0.5),
        _times(6, "refusals at 10x, p99", seen.refusals, 0.99, 0.1),
        Figure(6, "goodput at 10x, of its peak", f"{ratio:.0%}", "90%", None if math.isnan(ratio) else ratio >= 0.9),
        Figure(7, "memory growth", f"{growth:.0f} MiB", "100 MiB", _some(seen.memory_after, growth <= 100)),
        Figure(8, "kills recovered", kills, "all", _some(seen.kills, seen.recovered == seen.kills)),
        Figure(8, "requests without an answer", _few(seen.unanswered), "0", not seen.unanswered),
        Figure(8, "processes and files left", _few(seen.orphans), "0", not seen.orphans),
        Figure(9, "simulation of the batcher", _word(seen.simulation), "passes", seen.simulation),
        Figure(10, "preempted equal to unpreempted", _word(seen.preemption), "passes", seen.preemption),
    ]  # fmt: skip


def table(seen: Observations) -> str:
    """The verdict as people read it."""
    rows = [
        (str(f.number), f.what, f.value, f.wanted, {True: "ok", False: "FAILED", None: "-"}[f.passed])
        for f in figures(seen)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"answers: {', '.join(f'{status}: {count}' for status, count in sorted(seen.answered.items()))}"]
    return "\n".join(lines + [f"skipped: {what}" for what in seen.skipped])


def passed(seen: Observations) -> bool:
    """Whether no figure failed."""
    return all(figure.passed is not False for figure in figures(seen))


def quantile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _times(number: int, what: str, times: list[float], share: float, most: float) -> Figure:
    if not times:
        return Figure(number, what, "-", f"{most:g} s", None)
    value = quantile(times, share)
    return Figure(number, f"{what} ({len(times)})", f"{value:.3f} s", f"{most:g} s", value <= most)


def _some(number: int, verdict: bool) -> bool | None:
    return verdict if number else None


def _few(found: list[str]) -> str:
    return "0" if not found else f"{len(found)}: {'; '.join(found[:3])}"


def _word(verdict: bool | None) -> str:
    return {True: "passes", False: "fails", None: "-"}[verdict]

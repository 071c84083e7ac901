"""What a run of chaos has seen, and the verdict: ten figures, each with the most (or least) that is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

_MIB = 1 << 20


@dataclass(frozen=True)
class TenTimes:
    """What ten times the load brought.

    Attributes:
        peak_goodput, goodput: tokens a second, of as many clients as are best, and at ten times that load.
        refusals, probes: how many seconds each took then.
        errors: answers that are neither tokens nor refusals.
    """

    peak_goodput: float
    goodput: float
    refusals: list[float]
    probes: list[float]
    errors: list[str] = field(default_factory=list)


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
        at_10x: with an engine that is the bottleneck; raw_at_10x with one that takes no time.
        memory_before, memory_after: of the server, warm and after all of it; memory_most is the most meanwhile.
        engine_memory_before, engine_memory_most: of the engine, or of those that followed it.
        idle_cpu: share of a core that the busiest process uses when nothing is asked; idle_wakes is how often a second
            the engine goes to sleep then.
        stuck: times at which requests waited and no step was computed for long.
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
    at_10x: TenTimes | None = None
    raw_at_10x: TenTimes | None = None
    memory_before: int = 0
    memory_after: int = 0
    memory_most: int = 0
    engine_memory_before: int = 0
    engine_memory_most: int = 0
    idle_cpu: float | None = None
    idle_wakes: float | None = None
    stuck: list[str] = field(default_factory=list)
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
    errors = [*seen.errors, *(seen.at_10x.errors if seen.at_10x else ())]
    return [
        Figure(1, f"KV cache leaked after {seen.aborted} aborts", f"{seen.leaked:.2%}", "0", seen.leaked == 0),
        Figure(2, f"5xx of {sum(seen.answered.values())} answers", _few(errors), "0", not errors),
        Figure(3, "engine deaths from a request", str(seen.deaths), "0", seen.deaths == 0),
        Figure(3, wrong, _few(seen.wrong), "0", _some(seen.canaries, not seen.wrong)),
        _times(4, "a death noticed in", seen.deaths_noticed, 1.0, 5.0),
        _times(4, "a hang noticed in", seen.hangs_noticed, 1.0, 60.0),
        _times(5, "probes, p99", seen.probes, 0.99, 0.1),
        _times(5, "probes, the slowest", seen.probes, 1.0, 0.5),
        _most(5, "an idle server's use of a core", seen.idle_cpu, "{:.1%}", 0.1),
        _most(5, "an idle engine's wakes a second", seen.idle_wakes, "{:.0f}", 50),
        *_ten_times(seen.at_10x, "at 10x", 0.9),
        *_ten_times(seen.raw_at_10x, "at 10x of a model that takes no time", None),
        _growth("memory growth", seen.memory_before, seen.memory_after, 100),
        _growth("the most that it grew", seen.memory_before, seen.memory_most, 200),
        _growth("the most that the engine grew", seen.engine_memory_before, seen.engine_memory_most, 200),
        Figure(8, "kills recovered", kills, "all", _some(seen.kills, seen.recovered == seen.kills)),
        Figure(8, "requests without an answer", _few(seen.unanswered), "0", not seen.unanswered),
        Figure(8, "processes and files left", _few(seen.orphans), "0", not seen.orphans),
        Figure(9, "requests wait and nothing advances", _few(seen.stuck), "0", _some(seen.canaries, not seen.stuck)),
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


def _ten_times(seen: TenTimes | None, when: str, least: float | None) -> list[Figure]:
    """Figures of an overload; those without a `least` goodput are there to be looked at."""
    if seen is None:
        return []
    ratio = seen.goodput / seen.peak_goodput if seen.peak_goodput else math.nan
    goodput = f"{ratio:.0%} of {seen.peak_goodput:.0f}/s"
    found = [
        _times(6, f"refusals {when}, p99", seen.refusals, 0.99, 0.1),
        _times(5, f"probes {when}, p99", seen.probes, 0.99, 0.1),
        Figure(6, f"goodput {when}, of its peak", goodput, f"{least or 0.9:.0%}", ratio >= (least or 0.9)),
    ]
    return found if least is not None else [replace(figure, passed=None) for figure in found]


def _growth(what: str, before: int, after: int, most: int) -> Figure:
    growth = (after - before) / _MIB
    return Figure(7, what, f"{growth:.0f} MiB", f"{most} MiB", _some(min(before, after), growth <= most))


def _most(number: int, what: str, value: float | None, form: str, most: float) -> Figure:
    if value is None:
        return Figure(number, what, "-", form.format(most), None)
    return Figure(number, what, form.format(value), form.format(most), value <= most)


def _some(number: int, verdict: bool) -> bool | None:
    return verdict if number else None


def _few(found: list[str]) -> str:
    return "0" if not found else f"{len(found)}: {'; '.join(found[:3])}"


def _word(verdict: bool | None) -> str:
    return {True: "passes", False: "fails", None: "-"}[verdict]

"""Throughput, latencies, refusals and goodput of a run, as a table and as JSON."""

from __future__ import annotations

import collections
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.load.answer import Answer
    from benchmarks.load.runner import Run

SLO_NAMES = ("ttft", "tpot", "e2e")
_PERCENTILES = (50, 90, 95, 99)
_TITLES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "between tokens",
    "e2e_ms": "whole request",
}


def parse_slo(text: str) -> tuple[str, float]:
    """ttft=500 -> ("ttft", 500.0), in milliseconds.

    Raises:
        ValueError: it is not of that form.
    """
    name, _, value = text.partition("=")
    if name not in SLO_NAMES:
        raise ValueError(f"'{text}' is no objective: expected {', '.join(SLO_NAMES)}, and =MILLISECONDS")
    return name, float(value)


def distribution(samples: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Mean, percentiles and maximum of (value, weight) pairs; empty if there are none.

    A percentile is the smallest value that, with those below it, has that share of the weight.
    """
    ordered = sorted(sample for sample in samples if sample[1] > 0)
    if not ordered:
        return {}
    values, weights = np.array(ordered).T
    shares = weights.cumsum() / weights.sum() + 1e-12
    picked = {f"p{p}": float(values[np.searchsorted(shares, p / 100)]) for p in _PERCENTILES}
    return {"mean": float(np.average(values, weights=weights)), **picked, "max": float(values[-1])}


def milliseconds(seconds: Iterable[float | None]) -> dict[str, float]:
    """The distribution of times with equal weights; None is skipped."""
    return distribution((1e3 * value, 1.0) for value in seconds if value is not None)


def latencies(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """TTFT, TPOT and E2E of each answer without error, and ITL of each token."""
    good = [answer for answer in answers if answer.error is None]
    return {
        "ttft_ms": milliseconds(answer.ttft for answer in good),
        "tpot_ms": milliseconds(answer.tpot for answer in good),
        "itl_ms": distribution((1e3 * gap, weight) for answer in good for gap, weight in answer.gaps()),
        "e2e_ms": milliseconds(answer.e2e for answer in good),
    }


def meets(answer: Answer, slo: dict[str, float]) -> bool:
    """Whether an answer has no error and meets every objective (milliseconds)."""
    times = {"ttft": answer.ttft, "tpot": answer.tpot, "e2e": answer.e2e}
    return answer.error is None and all(1e3 * (times[name] or 0.0) <= most for name, most in slo.items())


def errors(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Errors by kind: count, times, and the Retry-After values."""
    kinds = collections.defaultdict(list)
    for answer in answers:
        if answer.error is not None:
            kinds[answer.error].append(answer)
    return {
        kind: {
            "count": len(failed),
            "ms": milliseconds(answer.e2e for answer in failed),
            "with_retry_after": sum(answer.retry_after is not None for answer in failed),
            "max_retry_after": max((answer.retry_after or 0.0 for answer in failed), default=0.0),
        }
        for kind, failed in sorted(kinds.items())
    }


def label(key: str) -> str:
    """The name of a key in reports: only its beginning, because keys are secret."""
    return key[:8]


def summarise(run: Run, slo: dict[str, float]) -> dict[str, Any]:
    """All figures of a run; per second means per second of the whole run."""
    good = [answer for answer in run.answers if answer.error is None]
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    cached_tokens = sum(answer.cached_tokens for answer in good)
    summary: dict[str, Any] = {
        "requests": len(run.answers),
        "completed": len(good),
        "seconds": run.seconds,
        "requests_per_second": len(good) / run.seconds,
        "output_tokens_per_second": sum(answer.output_tokens for answer in good) / run.seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": sum(answer.output_tokens for answer in good),
        "cached_tokens": cached_tokens,
        "cached_share": cached_tokens / prompt_tokens if prompt_tokens else 0.0,
        **latencies(run.answers),
        "errors": errors(run.answers),
        "client_cpu_seconds": run.cpu_seconds,
        "client_cpu_share": run.cpu_seconds / run.seconds,
        "max_client_lag_ms": 1e3 * max(answer.lag for answer in run.answers),
    }
    if slo:
        num_met = sum(meets(answer, slo) for answer in run.answers)
        summary |= {
            "slo_ms": slo,
            "goodput_requests_per_second": num_met / run.seconds,
            "slo_attainment": num_met / len(run.answers),
        }
    if len(keys := sorted({answer.key for answer in run.answers})) > 1:
        summary["keys"] = {
            label(key): {"requests": len(of_key), "errors": errors(of_key), **latencies(of_key)}
            for key in keys
            if (of_key := [answer for answer in run.answers if answer.key == key])
        }
    return summary


def table(summary: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [
        f"{summary['completed']} of {summary['requests']} requests in {summary['seconds']:.1f} s: "
        f"{summary['requests_per_second']:.2f} requests/s, {summary['output_tokens_per_second']:.1f} output tokens/s",
        f"{summary['prompt_tokens']} prompt tokens, {100 * summary['cached_share']:.1f}% cached; "
        f"{summary['output_tokens']} output tokens; client {100 * summary['client_cpu_share']:.1f}% of a core",
    ]
    if "slo_ms" in summary:
        objectives = ", ".join(f"{name} <= {most:g} ms" for name, most in summary["slo_ms"].items())
        lines.append(
            f"within {objectives}: {100 * summary['slo_attainment']:.1f}%, "
            f"{summary['goodput_requests_per_second']:.2f} requests/s"
        )
    lines += [f"{'':24}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p95", "p99", "max")) + "  (ms)"]
    for name, part in [("", summary), *summary.get("keys", {}).items()]:
        if name:
            lines.append(f"key {name}: {part['requests']} requests")
        lines += [_row(title, part[times]) for times, title in _TITLES.items()]
        lines += [_row(f"{kind}: {error['count']}", error["ms"]) for kind, error in part["errors"].items()]
    return "\n".join(lines) + "\n"


def _row(title: str, values: dict[str, float]) -> str:
    return f"{title:24}" + "".join(f"{value:10.1f}" for value in values.values())


def plot(answers: Sequence[Answer], path: Path) -> None:
    """Draw the distributions of TTFT, ITL and E2E into a file."""
    good = [answer for answer in answers if answer.error is None]
    panels = {
        "time to first token (s)": [(answer.ttft, 1.0) for answer in good if answer.ttft is not None],
        "between tokens (s)": [gap for answer in good for gap in answer.gaps()],
        "whole request (s)": [(answer.e2e, 1.0) for answer in good],
    }
    plot_shares(path, {title: {"": samples} for title, samples in panels.items()})


def plot_shares(path: Path, panels: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    """Draw cumulative distributions of (value, weight) pairs into a file: title of a panel -> name of a curve -> pairs.

    Needs matplotlib, from the extra `bench`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install matplotlib")

    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name, samples in curves.items():
            if samples:
                axes.ecdf(*zip(*samples, strict=True), label=name)
        axes.set(xscale="log", xlabel=title, ylabel="share", ylim=(0, 1))
        if len(curves) > 1:
            axes.legend()
    figure.savefig(path)

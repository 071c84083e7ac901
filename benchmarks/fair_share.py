"""What each rule of fair shares brings: simulated loads with all rules, then with each of them taken away.

python -m benchmarks.fair_share

A tenant floods (1,500 requests in 1.5 s) while a polite one sends a request a second: the polite one's TTFT at p95,
over what it has alone. And a greedy tenant always has a prompt of 4,000 tokens beside another's 64 streams: tokens that
the greedy one gets while the streams get 29,696.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.simulate import Arrival, simulate
from engine import fair_share
from engine.fair_share import FairShare

SIZES = ((64, 32), (128, 64), (256, 64), (512, 32))  # (prompt, output) of the polite tenant
NOBODY_FIRST = (FairShare, "goes_first", lambda *_: False)
NO_PACE = (FairShare, "max_tokens", lambda self, *nums: self._budget.tokens(*nums))
WITHOUT: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "all rules": (),
    "the order alone": (NOBODY_FIRST, NO_PACE),
    "no tenant goes first": (NOBODY_FIRST,),
    "nobody gives way": ((FairShare, "num_first", 0),),
    "no urgent steps": ((FairShare, "urgent", lambda *_: []),),
    "no pace": (NO_PACE,),
    "no bound on the burst": ((fair_share, "BURST", 1 << 40),),
}


def polite_and_flood(prompt: int, output: int) -> tuple[list[Arrival], list[Arrival]]:
    """The polite tenant's requests, and those of both."""
    rng, now, polite = random.Random(1), 1.0, []
    flood = [Arrival(i / 1000, rng.randint(32, 600), rng.randint(16, 128), "flood") for i in range(1500)]
    for _ in range(80):
        now += rng.expovariate(1.0)
        polite.append(Arrival(now, prompt, output, "polite"))
    return polite, sorted([*flood, *polite], key=lambda arrival: arrival.time)


def greedy_and_streams() -> list[Arrival]:
    """A tenant that always has a long prompt, beside 64 streams of another."""
    greedy = [Arrival(i * 0.01, 4000, 1, "greedy") for i in range(200)]
    streams = [Arrival(0.0, 64, 400, "streams") for _ in range(64)]
    return sorted([*greedy, *streams], key=lambda arrival: arrival.time)


def served_beside_streams() -> int:
    """Tokens that the greedy tenant gets until the last stream has ended."""
    ends = simulate(greedy_and_streams(), "fair").ends_of_key
    return sum(4001 for when in ends["greedy"] if when <= max(ends["streams"]))


def main() -> None:
    """A JSON line for each rule on stdout, for people on stderr."""
    for name, patches in WITHOUT.items():
        ratios, throughput = [], 0.0
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(mock.patch.object(*patch))
            for size in SIZES:
                polite, both = polite_and_flood(*size)
                alone, outcome = simulate(polite, "fair"), simulate(both, "fair")
                ratios.append(np.percentile(outcome.ttft_of_key["polite"], 95) / np.percentile(alone.ttft, 95))
                throughput += outcome.throughput / len(SIZES)
            served = served_beside_streams()
        line = {"rules": name, "ttft_p95_ratios": ratios, "output_tokens_per_second": throughput, "greedy": served}
        sys.stdout.write(json.dumps(line) + "\n")
        shown = " ".join(f"{ratio:6.2f}x" for ratio in ratios)
        sys.stderr.write(f"{name:24} {shown} {throughput:6.0f} tokens/s, greedy {served}\n")


if __name__ == "__main__":
    main()

"""The time to schedule a step, KV cache management included, by number of running and waiting sequences.

python -m benchmarks.scheduling --running 256 --waiting 10000
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time

from benchmarks.simulate import Arrival, sequence
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import POLICIES
from engine.step import SampledToken, StepResult


def measure(num_running: int, num_waiting: int, policy: str, num_steps: int) -> float:
    """Median seconds of schedule() and update() while all running sequences decode and the others wait."""
    num_blocks = num_running * -(-(num_steps + 140) // 16)  # so that nobody is preempted
    batcher = DynamicBatcher(KVCacheManager(num_blocks, 16), num_running, num_running + 512, policy=policy)
    for number in range(num_running + num_waiting):
        batcher.add(sequence(number, Arrival(0.0, 40, num_steps + 100, key=str(number % 7))))
    times = []
    while len(times) < num_steps:
        started = time.perf_counter()
        plan = batcher.schedule(0.0)
        scheduled = time.perf_counter()
        result = StepResult([SampledToken(5) for item in plan.scheduled if item.sample is not None])
        sampled = time.perf_counter()
        batcher.update(plan, result)
        if plan.num_decodes == num_running:
            times.append(time.perf_counter() - sampled + scheduled - started)
        batcher.observe(plan, 0.005 + 0.0003 * plan.num_tokens)
    return statistics.median(times)


def loop() -> float:
    """Seconds of a fixed piece of Python (10,000 small sums), a unit that does not depend on the machine's speed."""
    times = []
    for _ in range(50):
        started = time.perf_counter()
        sum([i + 1 for i in range(10_000)])
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print each measurement as a JSON line on stdout and as text on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--waiting", type=int, nargs="+", default=[0, 1000, 10_000])
    parser.add_argument("--policy", nargs="+", default=["length", "fair"], choices=list(POLICIES))
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    unit = loop()
    for policy, running, waiting in itertools.product(args.policy, args.running, args.waiting):
        ms = 1e3 * measure(running, waiting, policy, args.steps)
        line = {"policy": policy, "running": running, "waiting": waiting, "ms": ms, "loops": ms / 1e3 / unit}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stderr.write(f"{policy:8} {running:4} running, {waiting:6} waiting: {ms:.3f} ms a step, ")
        sys.stderr.write(f"{line['loops']:.2f} plain loops\n")


if __name__ == "__main__":
    main()

"""The time to schedule a step, KV cache management included, by number of running and waiting sequences.

python -m benchmarks.scheduling --running 256 --waiting 10000
python -m benchmarks.scheduling --running 16 --waiting 0 --prompt 40 32000 --attention full local:256
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time

from benchmarks.simulate import Arrival, parse_attention, sequence
from engine.cache_groups import group_layers
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import POLICIES
from engine.step import SampledToken, StepResult
from kernels.attention_pattern import FULL, AttentionPattern


def measure(
    num_running: int,
    num_waiting: int,
    policy: str,
    num_steps: int,
    prompt: int = 40,
    attention: tuple[AttentionPattern, ...] = (FULL,),
) -> float:
    """Median seconds of schedule() and update() while all running sequences decode and the others wait."""
    windows, max_batched_tokens = group_layers(attention).windows(16), num_running + 512
    num_output = num_steps + 100 + num_running * prompt // 512  # of the first until the last one decodes, too
    num_blocks = num_running * len(windows) * -(-(num_output + prompt + 1) // 16)  # so that nobody is preempted
    cache = KVCacheManager(num_blocks, 16, windows=windows, max_batched_tokens=max_batched_tokens)
    batcher = DynamicBatcher(cache, num_running, max_batched_tokens, policy=policy, prefill_share=math.inf)
    for number in range(num_running + num_waiting):
        batcher.add(sequence(number, Arrival(0.0, prompt, num_output, key=str(number % 7))))
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
    parser.add_argument("--prompt", type=int, nargs="+", default=[40], help="tokens (default: %(default)s)")
    parser.add_argument(
        "--attention", nargs="+", default=[FULL], type=parse_attention, metavar="LAYER", help=parse_attention.__doc__
    )
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    unit = loop()
    for policy, running, waiting, prompt in itertools.product(args.policy, args.running, args.waiting, args.prompt):
        ms = 1e3 * measure(running, waiting, policy, args.steps, prompt, tuple(args.attention))
        line = {"policy": policy, "running": running, "waiting": waiting, "prompt": prompt}
        line |= {"ms": ms, "loops": ms / 1e3 / unit}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stderr.write(
            f"{policy:8} {running:4} running of {prompt} tokens, {waiting:6} waiting: {ms:.3f} ms a step, "
        )
        sys.stderr.write(f"{line['loops']:.2f} plain loops\n")


if __name__ == "__main__":
    main()

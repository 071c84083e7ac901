"""Texts per second that the engine alone embeds, without HTTP: random prompts that arrive at once.

python -m benchmarks.pooling --texts 1000 --input-len 10 --pooling mean

Also prints the use of the machine, as benchmarks.offline does, and the share of the time outside of the executor.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernel_case import peak_flops
from benchmarks.offline import OPTIONS
from engine.build import load_engine
from engine.config import EngineConfig
from engine.protocol import PoolingParams, PoolRequest, SchedulingParams
from server.commands.output import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.engine import Engine


def main() -> None:
    """Run one configuration; print a summary on a terminal, and one JSON line into a pipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help="as of deepseek-serve")
    parser.add_argument("--max-batch-size", type=int, default=32, help="as of deepseek-serve (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--input-len", type=int, default=10)
    parser.add_argument("--pooling", choices=("last", "mean"), default="last")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs; the median is reported")
    parser.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    args = parser.parse_args()
    as_json = vars(args).pop("json")

    engine = load_engine(EngineConfig(**{name: getattr(args, name) for name in [*OPTIONS, "max_batch_size"]}))
    peak = peak_flops(getattr(torch, engine.info.dtype))
    runs = [_run(engine, args.texts, args.input_len, args.pooling, seed, peak) for seed in range(args.repeats)]
    best = sorted(runs, key=lambda run: run["texts_per_second"])[len(runs) // 2]
    result = {**vars(args), "model": args.model or "default", "dtype": engine.info.dtype, **best}
    text = (
        f"{best['texts_per_second']:.0f} texts/s, {best['tokens_per_second']:.0f} tokens/s in {best['steps']} steps; "
        f"{best['mfu']:.0%} of {peak / 1e9:.0f} GFLOP/s; {best['share_outside']:.1%} outside of the executor\n"
    )
    report(text, result, as_json=as_json)


def _run(engine: Engine, num_texts: int, input_len: int, pooling: Any, seed: int, peak: float) -> dict[str, float]:
    rng = random.Random(seed)
    params, runner = PoolingParams(task="embed", pooling=pooling), engine.executor.runner  # type: ignore[attr-defined]
    for i in range(num_texts):
        prompt = [rng.randrange(engine.info.vocab_size) for _ in range(input_len)]
        engine.add(PoolRequest(f"{i}", prompt, params, SchedulingParams(time.monotonic())))
    inside = least_seconds = 0.0
    num_steps = 0
    execute: Callable[..., Any] = engine.executor.execute

    def timed(plan: Any) -> Any:
        nonlocal inside, least_seconds, num_steps
        started = time.perf_counter()
        computed = execute(plan)
        inside += time.perf_counter() - started
        least_seconds += runner.work(plan).seconds_of(peak)
        num_steps += 1
        return computed

    engine.executor.execute = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - started
    engine.executor.execute = execute  # type: ignore[method-assign]
    return {
        "texts_per_second": num_texts / seconds,
        "tokens_per_second": num_texts * input_len / seconds,
        "mfu": least_seconds / seconds,
        "share_outside": 1 - inside / seconds,
        "steps": num_steps,
    }


if __name__ == "__main__":
    main()

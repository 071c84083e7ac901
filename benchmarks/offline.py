"""Tokens per second of the engine alone, without HTTP, for random prompts that arrive at once, greedy.

python -m benchmarks.offline --batch 32 --input-len 128 --output-len 64

Also prints the use of the machine in steps with prompt tokens and in decode steps, from the least work of a step
(engine.models.work): flops as a share of the rate of a large matrix product in the model's dtype (MFU; products in int8
count as half their flops, as machines compute twice as many of them), and bytes as a share of the bandwidth of a sum
over a large tensor. Which products are in int8, the engine says of the weights that it has loaded.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

from benchmarks.kernel_case import peak_flops, read_bandwidth
from engine.build import load_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams
from engine.step import StepPlan
from server.commands.output import report

_NAMES = ("model", "dtype", "kernels", "quantization", "activations", "kv_cache_dtype")
OPTIONS = {name: EngineConfig.model_fields[name].default for name in _NAMES}


def main() -> None:
    """Run one configuration; print a summary on a terminal, and one JSON line into a pipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help="as of deepseek-serve")
    parser.add_argument("--batch", type=int, default=32, help="sequences, and max_batch_size (default: %(default)s)")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="number of runs; the median is reported")
    parser.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    args = parser.parse_args()
    as_json = vars(args).pop("json")

    config = EngineConfig(**{name: getattr(args, name) for name in OPTIONS}, max_batch_size=args.batch)
    engine = load_engine(config)
    peak = peak_flops(getattr(torch, engine.info.dtype))
    bandwidth = read_bandwidth()
    load = (args.batch, args.input_len, args.output_len)
    runs = [_run(engine, *load, seed, peak) for seed in range(args.repeats)]
    best = sorted(runs, key=lambda run: run["output_tokens_per_second"])[len(runs) // 2]
    for kind in ("prompt", "decode"):
        seconds, least, num_bytes = (best.pop(f"{kind}_{name}") for name in ("seconds", "least_seconds", "bytes"))
        best[f"{kind}_mfu"], best[f"{kind}_bandwidth_use"] = least / seconds, num_bytes / bandwidth / seconds
    machine = {"flops_per_second": peak, "read_bytes_per_second": bandwidth}
    int8_share = engine.executor.runner.model.int8_share
    rates = f"{peak / 1e9:.0f} GFLOP/s" + (f" (twice that for the {int8_share:.0%} in int8)" if int8_share else "")
    found = {"model": args.model or "default", "dtype": engine.info.dtype, "int8_share": int8_share}
    result = {**vars(args), **found, **machine, **best}
    text = (
        f"{best['output_tokens_per_second']:.0f} output tokens/s; "
        f"median step {best['median_decode_step_ms']:.1f} ms decoding, {best['max_step_ms']:.0f} ms at most\n"
        + "".join(
            f"{kind} steps: {best[f'{kind}_mfu']:.0%} of {rates}, "
            f"{best[f'{kind}_bandwidth_use']:.0%} of {bandwidth / 1e9:.0f} GB/s\n"
            for kind in ("prompt", "decode")
        )
    )
    report(text, result, as_json=as_json)


def compute(
    engine: Engine, batch: int, input_len: int, output_len: int, seed: int
) -> tuple[list[tuple[StepPlan, float]], int]:
    """Complete random prompts, greedy; the steps with their seconds, and the number of output tokens."""
    rng = random.Random(seed)
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
    for i in range(batch):
        prompt = [rng.randrange(engine.info.vocab_size) for _ in range(input_len)]
        engine.add(GenerateRequest(f"{i}", prompt, params, 1, SchedulingParams(time.monotonic())))
    observe, steps, num_tokens = engine.batcher.observe, [], 0
    engine.batcher.observe = lambda plan, seconds: steps.append((plan, seconds)) or observe(plan, seconds)  # type: ignore[method-assign, func-returns-value]
    while engine.has_work:
        num_tokens += sum(len(output.token_ids) for output in engine.step().outputs)
    engine.batcher.observe = observe  # type: ignore[method-assign]
    return steps, num_tokens


def _run(engine: Engine, batch: int, input_len: int, output_len: int, seed: int, peak: float) -> dict[str, float]:
    start = time.perf_counter()
    steps, num_tokens = compute(engine, batch, input_len, output_len, seed)
    seconds = time.perf_counter() - start
    sums = {f"{kind}_{name}": 0.0 for kind in ("prompt", "decode") for name in ("seconds", "least_seconds", "bytes")}
    for plan, step_seconds in steps:
        kind, work = "decode" if plan.num_decodes == plan.num_tokens else "prompt", engine.executor.runner.work(plan)
        sums[f"{kind}_seconds"] += step_seconds
        sums[f"{kind}_least_seconds"] += work.seconds_of(peak)
        sums[f"{kind}_bytes"] += work.bytes
    decodes = [(plan.num_decodes, step) for plan, step in steps if plan.num_decodes == plan.num_tokens]
    most, _ = max(decodes)  # fewer than the batch, where the first have ended before the last prompt is computed
    return {
        "output_tokens_per_second": num_tokens / seconds,
        "median_decode_step_ms": 1e3 * statistics.median(step for num_decodes, step in decodes if num_decodes == most),
        "max_step_ms": 1e3 * max(step_seconds for _, step_seconds in steps),
        **sums,
    }


if __name__ == "__main__":
    main()

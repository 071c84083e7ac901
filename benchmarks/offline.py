"""Tokens per second of the engine alone, without HTTP, for random prompts that arrive at once, greedy.

python -m benchmarks.offline --batch 32 --input-len 128 --output-len 64

Also prints the use of the machine in steps with prompt tokens and in decode steps, from the least work of a step
(engine.models.work): flops as a share of the rate of a large matrix product (MFU; of twice that rate for int8), and
bytes as a share of the bandwidth of a sum over a large tensor.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time

import torch

from benchmarks.kernels import peak_flops, read_bandwidth
from engine.config import EngineConfig
from engine.engine import Engine
from engine.protocol import GenerateRequest, SamplingParams, Terms


def main() -> None:
    """Run one configuration; print a summary on stderr and one JSON line on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="as deepseek-serve --model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--quantization", default="none", help="as deepseek-serve --quantization")
    parser.add_argument("--kv-cache-dtype", default="auto", help="as deepseek-serve --kv-cache-dtype")
    parser.add_argument("--batch", type=int, default=32, help="sequences, and max_batch_size (default: %(default)s)")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of runs; the median is reported (default: %(default)s)"
    )
    args = parser.parse_args()

    config = EngineConfig(
        model=args.model,
        dtype=args.dtype,
        kernels=args.kernels,
        quantization=args.quantization,
        kv_cache_dtype=args.kv_cache_dtype,
        max_batch_size=args.batch,
    )
    engine = Engine.load(config)
    peak = peak_flops(getattr(torch, engine.info.dtype)) * (2 if args.quantization == "int8" else 1)
    bandwidth = read_bandwidth()
    runs = [_run(engine, args.batch, args.input_len, args.output_len, seed) for seed in range(args.repeats)]
    best = sorted(runs, key=lambda run: run["output_tokens_per_second"])[len(runs) // 2]
    for kind in ("prompt", "decode"):
        seconds, flops, num_bytes = (best.pop(f"{kind}_{name}") for name in ("seconds", "flops", "bytes"))
        best[f"{kind}_mfu"], best[f"{kind}_bandwidth_use"] = flops / peak / seconds, num_bytes / bandwidth / seconds
    machine = {"flops_per_second": peak, "read_bytes_per_second": bandwidth}
    result = {"model": args.model or "default", "dtype": engine.info.dtype, **machine, **vars(args), **best}
    sys.stderr.write(
        f"{best['output_tokens_per_second']:.0f} output tokens/s; "
        f"median step {best['median_decode_step_ms']:.1f} ms decoding, {best['max_step_ms']:.0f} ms at most\n"
        + "".join(
            f"{kind} steps: {best[f'{kind}_mfu']:.0%} of {peak / 1e9:.0f} GFLOP/s, "
            f"{best[f'{kind}_bandwidth_use']:.0%} of {bandwidth / 1e9:.0f} GB/s\n"
            for kind in ("prompt", "decode")
        )
    )
    sys.stdout.write(json.dumps(result) + "\n")


def _run(engine: Engine, batch: int, input_len: int, output_len: int, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
    for i in range(batch):
        prompt = [rng.randrange(engine.info.vocab_size) for _ in range(input_len)]
        engine.add(GenerateRequest(f"bench-{seed}-{i}", prompt, params, 1, Terms(time.monotonic())))
    observe, plans = engine.batcher.observe, []
    engine.batcher.observe = lambda plan, seconds: plans.append((plan, seconds)) or observe(plan, seconds)  # type: ignore[method-assign, func-returns-value]
    num_tokens = 0
    start = time.perf_counter()
    while engine.has_work:
        num_tokens += sum(len(output.token_ids) for output in engine.step().outputs)
    seconds = time.perf_counter() - start
    engine.batcher.observe = observe  # type: ignore[method-assign]
    sums = {f"{kind}_{name}": 0.0 for kind in ("prompt", "decode") for name in ("seconds", "flops", "bytes")}
    for plan, step_seconds in plans:
        kind, work = "decode" if plan.num_decodes == plan.num_tokens else "prompt", engine.executor.runner.work(plan)
        for name, value in (("seconds", step_seconds), ("flops", work.flops), ("bytes", work.bytes)):
            sums[f"{kind}_{name}"] += value
    return {
        "output_tokens_per_second": num_tokens / seconds,
        "median_decode_step_ms": 1e3 * statistics.median(s for plan, s in plans if plan.num_decodes == batch),
        "max_step_ms": 1e3 * max(step_seconds for _, step_seconds in plans),
        **sums,
    }


if __name__ == "__main__":
    main()

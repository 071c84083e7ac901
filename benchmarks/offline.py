"""Tokens per second of the engine alone, without HTTP: random prompts, all there at once, greedy.

python -m benchmarks.offline --batch 32 --input-len 128 --output-len 64
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time

from engine.config import EngineConfig
from engine.engine import Engine
from engine.protocol import GenerateRequest, SamplingParams, Terms


def main() -> None:
    """Run one configuration; a line for people on stderr, one JSON line on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="as deepseek-serve --model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--quantization", default="none", help="as deepseek-serve --quantization")
    parser.add_argument("--batch", type=int, default=32, help="sequences, and max_batch_size (default: %(default)s)")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs, of which the median counts (default: %(default)s)"
    )
    args = parser.parse_args()

    config = EngineConfig(
        model=args.model,
        dtype=args.dtype,
        kernels=args.kernels,
        quantization=args.quantization,
        max_batch_size=args.batch,
    )
    engine = Engine.load(config)
    runs = [_run(engine, args.batch, args.input_len, args.output_len, seed) for seed in range(args.repeats)]
    best = sorted(runs, key=lambda run: run["output_tokens_per_second"])[len(runs) // 2]
    result = {"model": args.model or "default", "dtype": engine.info.dtype, **vars(args), **best}
    sys.stderr.write(
        f"{best['output_tokens_per_second']:.0f} output tokens/s; "
        f"median step {best['median_decode_step_ms']:.1f} ms decoding, {best['max_step_ms']:.0f} ms at most\n"
    )
    sys.stdout.write(json.dumps(result) + "\n")


def _run(engine: Engine, batch: int, input_len: int, output_len: int, seed: int) -> dict[str, float]:
    numbers = random.Random(seed)
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
    for i in range(batch):
        prompt = [numbers.randrange(engine.info.vocab_size) for _ in range(input_len)]
        engine.add(GenerateRequest(f"bench-{seed}-{i}", prompt, params, 1, Terms(time.monotonic())))
    steps, decode_steps, num_tokens = [], [], 0
    start = time.perf_counter()
    while engine.has_work:
        before = time.perf_counter()
        outputs = engine.step().outputs
        steps.append(time.perf_counter() - before)
        num_tokens += sum(len(output.token_ids) for output in outputs)
        if len(outputs) == batch:  # every sequence advanced, so none was prefilling
            decode_steps.append(steps[-1])
    seconds = time.perf_counter() - start
    return {
        "output_tokens_per_second": num_tokens / seconds,
        "median_decode_step_ms": 1e3 * statistics.median(decode_steps),
        "max_step_ms": 1e3 * max(steps),
    }


if __name__ == "__main__":
    main()

"""Measure a model loaded into this process, or a server at a URL: tokens per second, and what a client feels.

Prompts are random tokens in this process, and random words at a URL (about a token each). So many requests as
--concurrency says are under way at any time. benchmarks/ in the repository has open loops, traces and comparisons.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

from engine.config import EngineConfig
from engine.errors import DeepseekServeError
from server.arguments import Parser, positive
from server.commands.output import report, table

_EPILOG = """examples:
  deepseek-serve bench
  deepseek-serve bench /models/my-llama --quantization int8 --concurrency 1 8 32
  deepseek-serve bench --url http://127.0.0.1:8000 --json"""
_ENGINE = (
    "dtype",
    "quantization",
    "activations",
    "kv_cache_dtype",
    "kernels",
    "threads",
)  # settings that serving has too


def main(argv: list[str]) -> int:
    """Run the command; the exit status."""
    args = _parser().parse_args(argv)
    try:
        lines = _measure(args)
    except DeepseekServeError as error:
        sys.stderr.write(f"deepseek-serve bench: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    report(show(lines), lines, as_json=args.json)
    return 0


def _parser() -> Parser:
    parser = Parser("deepseek-serve bench", __doc__, _EPILOG)
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="as for serving; with --url: one of its models, default the first")
    add("--url", help="measure the server there instead of a model here")
    add("--api-key", metavar="KEY", help="for --url")
    add("--concurrency", type=positive, nargs="+", default=[1, 8], metavar="N", help="requests at a time (1 8)")
    add("--requests", type=positive, metavar="N", help="how many (default: three times --concurrency, at least 4)")
    add("--input-len", type=positive, default=128, metavar="N", help="tokens of a prompt (default: %(default)s)")
    add("--output-len", type=positive, default=64, metavar="N", help="tokens of an answer (default: %(default)s)")
    for name in _ENGINE:
        add(f"--{name.replace('_', '-')}", metavar="X", help="as for serving, in this process")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the prompts; a new one for each run with --url (default: %(default)s)",
    )
    add("--json", action="store_true", help="print JSON on a terminal too")
    return parser


def _measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run each concurrency; the figures of each."""
    from tqdm import tqdm

    from server.commands.bench_targets import Load, LocalTarget, RemoteTarget, summarise

    if args.url:
        target: LocalTarget | RemoteTarget = RemoteTarget(args.url, args.api_key, args.model)
    else:
        settings = {name: value for name in _ENGINE if (value := getattr(args, name)) is not None}
        config = EngineConfig(model=args.model, max_batch_size=max(args.concurrency), prefix_caching="off", **settings)
        target = LocalTarget(config)
    seeds = random.Random(args.seed)  # noqa: S311  # no secret; each load has its own: a server may cache prefixes
    target.run(Load(1, 2, args.input_len, 4, seeds.getrandbits(31)), lambda: None)  # to be warm
    lines = []
    for concurrency in args.concurrency:
        requests = args.requests or max(4, 3 * concurrency)
        load = Load(concurrency, requests, args.input_len, args.output_len, seeds.getrandbits(31))
        with tqdm(total=requests, desc=f"{concurrency} at a time", unit="request", leave=False, disable=None) as bar:
            answers, seconds = target.run(load, bar.update)
        lines.append({"model": target.name, **vars(load), "seed": args.seed, **summarise(answers, seconds)})
    return lines


def show(lines: list[dict[str, Any]]) -> str:
    """Return the figures as a table."""
    rows = [["at a time", "requests", "in + out tokens/s", "TTFT p50", "p99", "per token p50", "p99"]]
    for line in lines:
        rates = f"{line['prompt_tokens_per_second']:.0f} + {line['output_tokens_per_second']:.0f}"
        times = [line[name] for name in ("ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "tpot_ms_p99")]
        shown = ["-" if time is None else f"{time:.1f} ms" for time in times]
        rows.append([str(line["concurrency"]), str(line["completed"]), rates, *shown])
    first = lines[0]
    return f"{first['model']}: {first['input_len']} tokens in, {first['output_len']} out\n{table(rows)}"

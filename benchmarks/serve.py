"""Load an OpenAI-compatible server over HTTP, and report throughput and latencies.

    python -m benchmarks.serve --concurrency 32 --input-len 128 --output-len 64 --ignore-eos     # a closed loop
    python -m benchmarks.serve --rate 4 --requests 400 --input-len lognormal:90:1.4:2048         # Poisson arrivals
    python -m benchmarks.serve --api-key heavy,rate=inf,requests=200 --api-key light,rate=1      # several callers
    python -m benchmarks.serve --dataset trace.jsonl --slo ttft=500 --slo tpot=50                # replay, goodput

Prints a table on a terminal, and one JSON line into a pipe. --dataset reads lines of {"prompt": text, token ids or a
number of tokens, "max_tokens": N}; optional keys are "time" (seconds), "key", "priority" and "prefix" ([name, tokens]).
Requests with times are sent at these times, unless --rate or --concurrency is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.load import report, workload
from benchmarks.load.runner import Endpoint, Run, run
from benchmarks.load.targets import get
from server.commands import output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse flags; a bad value ends the program with a message that says what is valid."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length, positive, rate = _named(workload.Lengths.parse), _named(workload.positive), _named(workload.parse_rate)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    add("--model", help="default: the first of /v1/models")
    add("--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions")
    add("--requests", type=positive, help="how many (default: 100, or all of --dataset)")
    add("--concurrency", type=positive, help="closed loop: requests in flight (default: 8)")
    add("--rate", type=rate, help="open loop: Poisson arrivals per second; inf sends all at once")
    add("--input-len", type=length, default="128", help="tokens: 128, 64-512, or lognormal:MEDIAN:SIGMA:MAX")
    add("--output-len", type=length, default="64", help="tokens, in the same forms")
    add("--shared-prefix", type=int, default=0, metavar="TOKENS", help="a system prompt before every prompt")
    add("--text", action="store_true", help="prompts of words instead of token ids (implied by --chat)")
    add("--vocab-size", type=positive, default=32_000, help="upper bound of token ids (default: %(default)s)")
    add("--dataset", type=Path, metavar="FILE", help="requests from a file of JSON lines")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY[,rate=R][,concurrency=C][,requests=N][,input-len=L][,output-len=L]",
        help="send as this caller; repeat for several callers, each with its own load",
    )
    add("--temperature", type=float, default=1.0)
    add("--ignore-eos", action="store_true", help="every answer has its maximum length")
    add("--token-ids", action="store_true", help="request token ids, to count the tokens of each chunk")
    add("--body", type=json.loads, default={}, metavar="JSON", help="more parameters: '{\"top_p\": 0.9}'")
    add("--seed", type=int, default=0, help="use a new seed for each run, or prompts are in the prefix cache already")
    add("--warmup", type=int, default=4, metavar="N", help="requests before the measurement (default: %(default)s)")
    add("--timeout", type=float, default=600.0, help="seconds for one answer (default: %(default)s)")
    add("--slo", type=_named(report.parse_slo), action="append", default=[], metavar="ttft|tpot|e2e=MS")
    add("--json", action="store_true", help="print JSON on a terminal too")
    add("--plot", type=Path, metavar="FILE", help="draw the distributions (pip install 'deepseek-serve[bench]')")
    args = parser.parse_args(argv)
    try:
        args.sources = sources(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return args


def sources(args: argparse.Namespace) -> list[workload.Source]:
    """The request sources that the flags describe.

    Raises:
        ValueError, OSError: a key's settings or the file cannot be read.
    """
    load = _load(args, args.requests or 100)
    prompts = _prompts(args, args.shared_prefix)
    if args.dataset is not None:
        replay = args.rate is None and args.concurrency is None and workload.has_times(args.dataset)
        return [workload.read(args.dataset, load, prompts, args.seed, limit=args.requests, replay=replay)]
    return [workload.generate(load.of_key(key), prompts, args.seed) for key in args.api_key or [""]]


def measure(args: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """Send warm-up requests, then the load; return the run and its summary."""
    flags = {"ignore_eos": args.ignore_eos, "return_token_ids": args.token_ids}
    body = {"temperature": args.temperature, **args.body, **{name: True for name, is_set in flags.items() if is_set}}
    key = args.sources[0].requests[0].key
    endpoint = Endpoint(args.url, args.model or served_model(args.url, key), args.chat, body, args.timeout)
    if args.warmup:
        load = dataclasses.replace(_load(args, args.warmup), key=key, rate=None)
        uvloop.run(run(endpoint, [workload.generate(load, _prompts(args, 0), f"{args.seed}/warm-up")]))
    result = uvloop.run(run(endpoint, args.sources))
    return result, report.summarise(result, dict(args.slo))


def settings(args: argparse.Namespace) -> dict[str, str]:
    """The flags that are set, for the JSON line. API keys are replaced by their labels."""
    values = {name: value for name, value in vars(args).items() if value and name not in ("sources", "slo", "json")}
    if args.api_key:
        parts = [key.partition(",") for key in args.api_key]
        values["api_key"] = [report.label(key) + comma + rest for key, comma, rest in parts]
    return {name: str(value) for name, value in values.items()}


def served_model(url: str, key: str = "") -> str:
    """The first model of /v1/models.

    Raises:
        OSError: the server does not answer.
    """
    model: str = json.loads(get(url, "/v1/models", key))["data"][0]["id"]
    return model


def _load(args: argparse.Namespace, requests: int) -> workload.Load:
    return workload.Load(args.input_len, args.output_len, requests, args.rate, args.concurrency or 8)


def _prompts(args: argparse.Namespace, shared_prefix: int) -> workload.Prompts:
    return workload.Prompts(None if args.text or args.chat else args.vocab_size, shared_prefix)


def _named(parse_value: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make argparse show the text of a ValueError."""

    def convert(text: str) -> Any:
        try:
            return parse_value(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def main() -> None:
    """Print the table and the JSON line, and draw the plot. Exits with 1 if no request was answered."""
    args = parse()
    try:
        result, summary = measure(args)
    except OSError as error:
        sys.exit(f"benchmarks.serve: error: {args.url} cannot be reached: {error}")
    output.report(report.table(summary), {"settings": settings(args), **summary}, as_json=args.json)
    if args.plot:
        report.plot(result.answers, args.plot)
    sys.exit(0 if summary["completed"] else 1)


if __name__ == "__main__":
    main()

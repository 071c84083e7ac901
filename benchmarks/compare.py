r"""Measure servers in turn and print ratios; the first target is ours.

    python -m benchmarks.compare --case 128,64,8 128,64,32 \\
        --target "ours=deepseek-serve --port {port} --model FOLDER" --target peer=http://127.0.0.1:8080

A target is a URL, or a command with {port}. A command is started here, and ended with all processes that it started. In
one round of a case all targets get the same requests. Each round of each case has requests of its own, which no prefix
cache knows. A table of medians is printed on a terminal, and a JSON line for each run into a pipe. --load-command names
another load generator with the output of `vllm bench serve`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shlex
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks import serve
from benchmarks.load.targets import Target, TargetError, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FIGURES = ("output_tokens_per_second", "ttft_ms", "tpot_ms")
_PRINTED = {  # the labels of `vllm bench serve`
    "completed": r"Successful requests",
    "output_tokens_per_second": r"Output token throughput \(tok/s\)",
    "ttft_ms": r"Median TTFT \(ms\)",
    "tpot_ms": r"Median TPOT \(ms\)",
}


@dataclass(frozen=True)
class Case:
    """One load: prompt tokens, output tokens, concurrent requests, total requests."""

    input_len: int
    output_len: int
    concurrency: int
    requests: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """IN,OUT,CONCURRENCY[,REQUESTS]; by default three requests for each concurrent one, and at least 8.

        Raises:
            ValueError: the text has another form.
        """
        numbers = [int(word) for word in text.split(",")]
        if len(numbers) == 3:
            numbers.append(max(8, 3 * numbers[2]))
        if len(numbers) != 4 or min(numbers) < 1:
            raise ValueError(f"'{text}' is not a case; expected IN,OUT,CONCURRENCY or IN,OUT,CONCURRENCY,REQUESTS")
        return cls(*numbers)


Figures = dict[str, Any]  # FIGURES, completed, errors


def our_load(target: Target, case: Case, seed: int, flags: Sequence[str]) -> Figures:
    """One run of benchmarks.serve; times are medians."""
    args = serve.parse(
        [
            *("--url", target.url, "--ignore-eos", "--seed", str(seed)),
            *("--input-len", str(case.input_len), "--output-len", str(case.output_len)),
            *("--concurrency", str(case.concurrency), "--requests", str(case.requests)),
            *flags,
        ]
    )
    _, summary = serve.measure(args)
    figures = {name: summary[name] for name in ("completed", "output_tokens_per_second", "client_cpu_seconds")}
    times = {name: summary[name].get("p50") for name in ("ttft_ms", "tpot_ms")}
    return {**figures, **times, "errors": {kind: error["count"] for kind, error in summary["errors"].items()}}


def other_load(target: Target, case: Case, seed: int, command: str, timeout: float) -> Figures:
    """One run of another load generator.

    Raises:
        TargetError: the generator failed, or its output cannot be read.
    """
    values = {"url": target.url, "port": urlsplit(target.url).port, "seed": seed, **vars(case)}
    words = [re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), word) for word in shlex.split(command)]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout)
    except (OSError, subprocess.SubprocessError) as error:
        raise TargetError(f"--load-command: {error}") from None
    return parse_printed(done.stdout, case)


def parse_printed(text: str, case: Case) -> Figures:
    """The figures in the output of `vllm bench serve`.

    Raises:
        TargetError: a figure is missing.
    """
    figures: Figures = {}
    for name, printed in _PRINTED.items():
        found = re.search(rf"^{printed}:\s+([\d.]+)$", text, re.MULTILINE)
        if found is None:
            raise TargetError(f"--load-command printed no line '{printed}: NUMBER'")
        figures[name] = float(found[1])
    failed = case.requests - int(figures["completed"])
    return figures | {"errors": {"failed": failed} if failed else {}}


def medians(runs: Sequence[Figures]) -> dict[str, float]:
    """The medians of several runs; errors are summed."""
    middle = {
        name: statistics.median([run[name] for run in runs if run[name] is not None] or [0.0]) for name in FIGURES
    }
    return {**middle, "errors": sum(sum(run["errors"].values()) for run in runs)}


def table(results: dict[Case, dict[str, list[Figures]]], names: Sequence[str]) -> str:
    """Markdown, one row for each case and peer. A throughput ratio above 1 means that ours is faster."""
    ours, *peers = names
    lines = [
        f"| in | out | streams | peer | tokens/s, {ours} | peer | ratio | TTFT ms, {ours} / peer | TPOT ms | failed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, runs in results.items():
        mine = medians(runs[ours])
        for peer in peers or [ours]:
            theirs = medians(runs[peer])
            rate, their_rate = mine["output_tokens_per_second"], theirs["output_tokens_per_second"]
            cells = [
                *(case.input_len, case.output_len, case.concurrency, peer, f"{rate:.1f}", f"{their_rate:.1f}"),
                f"{rate / their_rate:.2f}" if their_rate else "-",
                *(f"{mine[name]:.1f} / {theirs[name]:.1f}" for name in ("ttft_ms", "tpot_ms")),
                f"{mine['errors']:.0f} / {theirs['errors']:.0f}",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def compare(targets: Sequence[Target], args: argparse.Namespace) -> Iterator[tuple[Case, Target, int, Figures]]:
    """Run all cases round by round; the target that starts changes in each round."""
    seeds = random.Random(args.seed)
    for case in args.case:
        for repeat in range(args.repeats):
            first, seed = repeat % len(targets), seeds.getrandbits(31)
            for target in [*targets[first:], *targets[:first]]:
                if args.load_command:
                    figures = other_load(target, case, seed, args.load_command, args.timeout)
                else:
                    figures = our_load(target, case, seed, shlex.split(args.load_flags))
                yield case, target, repeat, figures


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse flags; a bad value ends the program with a message that says what is valid."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--target", action="append", required=True, metavar="NAME=URL|COMMAND", help="ours first, then peers")
    add("--case", nargs="+", default=["128,64,1", "128,64,8", "128,64,32"], metavar="IN,OUT,CONCURRENCY[,REQUESTS]")
    add("--repeats", type=int, default=3, help="number of rounds; figures are medians (default: %(default)s)")
    add(
        "--seed",
        type=int,
        default=0,
        help="of the prompts; a new one for each run of the same servers (default: %(default)s)",
    )
    add("--load-flags", default="", help="more flags for benchmarks.serve: '--chat --temperature 0'")
    add("--load-command", help="another generator, with {url}, {port}, {seed}, {input_len}, {output_len}, ...")
    add("--start-timeout", type=float, default=300.0, help="seconds for a target to be ready (default: %(default)s)")
    add("--timeout", type=float, default=1800.0, help="seconds for a run of --load-command (default: %(default)s)")
    add("--json", action="store_true", help="print JSON on a terminal too")
    args = parser.parse_args(argv)
    try:
        args.case = [Case.parse(text) for text in args.case]
    except ValueError as error:
        parser.error(str(error))
    pairs = [text.partition("=") for text in args.target]
    args.targets = {name: where for name, _, where in pairs}
    if len(args.targets) < len(pairs) or not all(name and where for name, where in args.targets.items()):
        parser.error("each --target is NAME=URL or NAME=COMMAND, and names are unique")
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    return args


def main() -> None:
    """Print a JSON line for each run and the table. All started processes are ended, also after a signal."""
    args = parse()
    is_json = args.json or not sys.stdout.isatty()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results: dict[Case, dict[str, list[Figures]]] = {}
    try:
        with contextlib.ExitStack() as stack:
            targets = [
                stack.enter_context(running(name, where, args.start_timeout)) for name, where in args.targets.items()
            ]
            for case, target, repeat, figures in compare(targets, args):
                results.setdefault(case, {}).setdefault(target.name, []).append(figures)
                line = {"target": target.name, **vars(case), "repeat": repeat, **figures}
                if is_json:
                    sys.stdout.write(json.dumps(line) + "\n")
                    sys.stdout.flush()
                else:
                    sys.stderr.write(f"{target.name}: {case}, {figures['output_tokens_per_second']:.1f} tokens/s\n")
    except (TargetError, OSError) as error:
        sys.exit(f"benchmarks.compare: error: {error}")
    (sys.stderr if is_json else sys.stdout).write(table(results, list(args.targets)))


if __name__ == "__main__":
    main()

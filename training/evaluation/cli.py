"""`python -m training.evaluation`: MMLU, GSM8K, HumanEval, other tasks and latency of a model, through the HTTP API."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DeepseekServeError
from engine.loading.default_model import cache_path
from server.arguments import Parser, positive
from training.evaluation import report, served
from training.evaluation.evaluate import BENCHMARKS, Wanted, evaluate

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from training.evaluation.served import Served

_EPILOG = """examples:
  make evaluate                                     # the default model
  make evaluate ARGS="/models/llm-7b-chat --limit 100 --out scores.json"
  make evaluate ARGS="--url http://127.0.0.1:8000 --only HumanEval latency"
  make evaluate ARGS="MODEL --only tasks --tasks arc_easy my_task.yaml"
docs/evaluation.md says where the data of MMLU and GSM8K belongs, and how to write a task."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.out:
            report.check(args.out)
        with _server(args) as server:
            rows = evaluate(server, Wanted(tuple(args.only), args.data, args.tasks, args.limit, args.concurrency))
    except DeepseekServeError as error:
        sys.stderr.write(f"evaluate: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(report.as_table(server.model, rows))
    if args.out:
        try:
            report.write(args.out, report.as_json(server.model, rows))
        except OSError as error:
            sys.stderr.write(f"evaluate: error: {args.out} cannot be written: {error.strerror}\n")
            return 2
    return 0


def _server(args: argparse.Namespace) -> AbstractContextManager[Served]:
    if args.url:
        return contextlib.nullcontext(served.at(args.url, args.api_key, args.model))
    sys.stderr.write(f"serving {args.model or 'the default model'} ...\n")
    return served.started(args.model, ["--max-batch-size", str(args.concurrency)])


def _parser() -> Parser:
    parser = Parser("evaluate", __doc__, _EPILOG)
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="as for serving; with --url: one of its models, default the first")
    add("--url", help="evaluate the server there instead of serving a model here")
    add("--api-key", metavar="KEY", help="for --url")
    add("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)} (default: all)")  # fmt: skip
    add("--data", type=Path, default=cache_path().parent / "evaluation", metavar="DIR",
        help="the folder with mmlu/ and gsm8k/ (default: %(default)s)")  # fmt: skip
    add("--tasks", nargs="+", metavar="NAME|FILE.yaml",
        help="tasks of lm-eval whose data is here, or files of tasks (default: this project's own)")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="take only the first N questions of each task")
    add("--concurrency", type=positive, default=16, metavar="N", help="requests at a time (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the figures there as JSON")
    return parser

"""The command `deepseek-train`: trains by a recipe, goes on with a run, or tells what a run would need.

Exit status: 0 at the end of the run, 2 when a setting, a file or the data is at fault, 1 when the program is, and
128 + the signal's number after a signal, which leaves a checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import DeepseekServeError
from engine.logs import configure, printable
from server.arguments import Parser
from training.config import SECTIONS, Settings
from training.read_config import read_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from training.config import Section

_DESCRIPTION = """Train a DynamicMoE by a recipe, to a folder that deepseek-serve serves.

settings, in the recipe's YAML or behind it as KEY=VALUE (docs/training.md):
{settings}"""

_EPILOG = """examples:
  deepseek-train recipe.yaml
  deepseek-train recipe.yaml --resume
  deepseek-train recipe.yaml total_steps=500 data.max_length=512
  torchrun --nproc-per-node 8 -m training.cli recipe.yaml"""


_EXTRA = ("lion_pytorch", "tensorboard")  # what the extra `train` brings
_MOST_DIGITS = 6  # of ranks on a machine
_PATIENCE = 30.0  # seconds until a rank tells its own mistake, since the first one has not ended


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(argv: list[str]) -> int:
    """Do what the arguments say; the exit status."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if not args.CONFIG:
        parser.error("the recipe is missing: deepseek-train CONFIG")
    if (args.memory or args.ranks_per_node) and not args.plan:
        parser.error("--memory and --ranks-per-node go with --plan")
    configure("train", "info", "text")
    try:
        return _run(args)
    except (DeepseekServeError, OSError) as error:
        _leave_the_word_to_the_first_rank()
        sys.stderr.write(f"deepseek-train: error: {printable(str(error))}\n")
        return 2
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.stderr.write(f"deepseek-train: error: {error.name} is not installed: pip install 'deepseek-serve[train]'\n")
        return 2
    except KeyboardInterrupt:  # before the first step
        return 128 + signal.SIGINT


def _leave_the_word_to_the_first_rank() -> None:
    """Of a mistake that all of torchrun's processes find, one tells; torchrun ends the others when that one ends."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(_PATIENCE)


def _run(args: argparse.Namespace) -> int:
    path, *overrides = args.CONFIG
    settings = read_settings(Path(path), overrides)
    if args.plan:
        from training.parallel.plan import make_plan

        plan = make_plan(settings, args.memory, args.ranks_per_node or 8)
        sys.stdout.write(plan.text)
        return 0 if plan.fits else 2
    from training import run  # imports torch, which a mistake in the recipe need not wait for

    if args.fisher is not None:
        return run.write_fisher(settings, args.fisher)
    return run.train(settings, resume=args.resume)


def _parser() -> Parser:
    parser = Parser("deepseek-train", _DESCRIPTION.format(settings="\n".join(_listed(Settings))), _EPILOG)
    add = parser.add_argument
    parser.usage = "deepseek-train CONFIG [--resume] [--plan [--memory GIB]] [--fisher FILE] [KEY=VALUE ...]"
    add("CONFIG", nargs="*", help="the recipe, a YAML file; behind it KEY=VALUE, settings that replace the recipe's")
    add_mode = parser.add_mutually_exclusive_group().add_argument
    add_mode("--resume", action="store_true", help="go on from the newest whole checkpoint; without one, begin")
    add_mode("--plan", action="store_true", help="tell memory and communication of each rank, and train nothing")
    add("--memory", type=_amount, metavar="GIB", help="with --plan: what a rank has; status 2 if it does not fit")
    add("--ranks-per-node", type=_count, metavar="N", help="with --plan: ranks of a machine (default: 8)")
    what = "write what the model needs for this data, for ewc in a later recipe"
    add_mode("--fisher", type=Path, metavar="FILE", help=what)
    return parser


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text[:20]!r} is no number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < 1:
        raise ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 to {'9' * _MOST_DIGITS}")
    return int(text)


def _listed(section: type[Section], prefix: str = "") -> Iterator[str]:
    """A line for each setting: name, default, help."""
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        if not prefix and name in SECTIONS and name != "objective":
            yield from _listed(SECTIONS[name], f"{name}.")
            continue
        default = "" if field.is_required() or field.default is None else f" (default: {_plain(field.default)})"
        yield f"  {prefix + name:25} {field.description}{default}"
        if name == "objective":
            yield from _listed(SECTIONS[name], f"{name}.")


def _plain(value: object) -> object:
    return getattr(value, "kind", str(value).lower() if isinstance(value, bool) else value)


if __name__ == "__main__":
    main()

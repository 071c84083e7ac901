"""`python -m training.article`: the article's whole way, from text to a served int8 model, and a report of it.

Stages that are done are passed over, and a training run goes on from its last checkpoint: start it again after a stop.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError, DeepseekServeError
from server.arguments import Parser
from training.article.workplace import SCALES, STAGES, Workplace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from training.article.workplace import Figures

_EPILOG = """examples:
  make article                              # an hour on two cores
  make article ARGS="--scale tiny"          # every stage, in seconds
  make article ARGS="--from align"          # do the later stages again
  make article ARGS="--report docs/article.md --serve"
A scale is a folder (training/article/scales) with the models, the recipes of deepseek-train and scale.yaml."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    args = _parser().parse_args(argv)
    scale = SCALES / args.scale if "/" not in args.scale else Path(args.scale)
    place = Workplace((args.out or Path("runs") / f"article-{scale.name}").absolute(), scale.absolute())
    try:
        if not (scale / "scale.yaml").is_file():
            names = ", ".join(sorted(path.name for path in SCALES.iterdir()))
            raise ConfigError(f"--scale {args.scale} is neither one of {names} nor a folder with scale.yaml")
        place.sizes  # noqa: B018  # a mistake in scale.yaml is told before anything is done
        run(place, args.begin)
        text = report_of(place, args.report)
    except (DeepseekServeError, OSError) as error:
        sys.stderr.write(f"article: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("article: stopped; the same command goes on from here\n")
        return 130
    sys.stdout.write(text)
    return _serve(place) if args.serve else 0


def run(place: Workplace, begin: str | None = None) -> None:
    """Do all stages that are not done; those from `begin` on in any case.

    Raises:
        DeepseekServeError: a stage failed.
        KeyboardInterrupt: one was stopped.
    """
    stages = _stages()
    if begin is not None:
        _forget(place, list(stages)[list(stages).index(begin) :])
    place.out.mkdir(parents=True, exist_ok=True)
    for name, (stage, _) in stages.items():
        if place.figures(name) is not None:
            continue
        sys.stderr.write(f"article: {name}: {(stage.__doc__ or '').splitlines()[0]}\n")
        started = time.monotonic()
        place.done(name, stage(place), time.monotonic() - started)


def report_of(place: Workplace, path: Path | None) -> str:
    """Write the report with its pictures beside it, and where `path` says; its text."""
    from training.article import report

    text = report.write(place, place.out / "report.md", place.out)
    if path is not None:
        text = report.write(place, path, path.parent / "images")
    return text


def _stages() -> Mapping[str, tuple[Callable[[Workplace], Figures], tuple[str, ...]]]:
    """The stages, in the order of STAGES, each with the folders that it makes."""
    from training.article import deployment, stages  # they import torch, which --help need not wait for

    return {
        "corpus": (stages.write_corpus, ("corpus",)),
        "tokenizer": (stages.make_tokenizer, ("tokenizer",)),
        "pretrain": (stages.pretrain, ("pretrain",)),
        "continual": (stages.continue_training, ("plain", "ewc")),
        "seeds": (stages.repeat_with_seeds, ("seeds",)),
        "align": (deployment.align, ("sft", "dpo", "safety")),
        "int8": (deployment.quantise, tuple(deployment.SCHEMES)),
        "evaluation": (deployment.evaluate_served, ("evaluation",)),
        "serving": (deployment.serve, ()),
    }


def _forget(place: Workplace, names: Sequence[str]) -> None:
    """Remove what stages have made, so that they are done again."""
    from training.article import recipes

    for name in names:
        place.forget(name)
        for folder in _stages()[name][1]:
            recipes.remove(place, folder)
    if "continual" in names:
        (place.out / "fisher.safetensors").unlink(missing_ok=True)
    if "align" in names:
        (place.out / "language.fisher").unlink(missing_ok=True)


def _serve(place: Workplace) -> int:
    """Become the server of the model that was made."""
    from training.article.deployment import SERVED

    command = [sys.executable, "-m", "server.cli", str(place.out / SERVED)]
    os.execv(sys.executable, command)  # noqa: S606  # nosec B606  # this very interpreter


def _parser() -> Parser:
    parser = Parser("article", __doc__, _EPILOG)
    add = parser.add_argument
    add("--scale", default="full", metavar="NAME|FOLDER", help="full, tiny, or a folder as these (default: full)")
    add("--out", type=Path, metavar="DIR", help="where all is written (default: runs/article-SCALE)")
    add(
        "--from",
        dest="begin",
        choices=STAGES,
        metavar="STAGE",
        help=f"do it and the later ones again: {', '.join(STAGES)}",
    )
    add(
        "--report", type=Path, metavar="FILE", help="write the report there too, with its pictures in images/ beside it"
    )
    add("--serve", action="store_true", help="serve the model in the end")
    return parser

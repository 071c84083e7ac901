"""Runs deepseek-train's recipes of a scale: pretrain.yaml and its like name all but the files of this run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from training import run as training_run
from training.read_config import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from training.article.workplace import Figures, Workplace
    from training.config import Settings

_KEPT = (  # of the last step's metrics
    *("loss", "validation_loss", "accuracy", "ranked_right", "expert_load_min", "expert_load_max", "dropped"),
    *("skipped_steps", "mfu"),
)


class StoppedError(KeyboardInterrupt):
    """A signal ended a training run, which left a checkpoint."""


def train(
    place: Workplace,
    name: str,
    recipe: str,
    model: Path,
    learnt: Path,
    held_out: Path,
    settings: Mapping[str, Any] | None = None,
) -> Figures:
    """Train by a recipe of this scale into the folder `name`, from where an earlier try was stopped.

    Args:
        place: where.
        name: of the run's folder.
        recipe: the file's name without .yaml.
        model: a config.json, or a folder with weights.
        learnt: the records to train on.
        held_out: records whose loss is taken as the run goes.
        settings: others of the recipe's, such as {"seed": 1}; None leaves one out.

    Returns:
        What the run ended with: its last metrics, tokens and seconds of training.

    Raises:
        DeepseekServeError: a file, a setting or the data is at fault.
        StoppedError: a signal ended it.
    """
    values = {"validation.files": [str(held_out)], **(settings or {})}
    chosen = _settings(place, name, recipe, model, learnt, values)
    if place.model(name).exists():  # it was trained, and the stage was stopped behind it
        return _outcome(chosen.output)
    if training_run.train(chosen, resume=chosen.output.exists()) != 0:
        raise StoppedError
    return _outcome(chosen.output)


def measure_fisher(
    place: Workplace, recipe: str, model: Path, learnt: Sequence[Path], path: Path, num_batches: int
) -> None:
    """Write what a model needs for these records (deepseek-train --fisher), from so many micro batches; once.

    Raises:
        DeepseekServeError: a file, a setting or the data is at fault.
    """
    if not path.exists():
        files = [str(one) for one in learnt]
        values = {"total_steps": num_batches, "warmup_steps": 0, "data.files": files, "ewc": None}
        training_run.write_fisher(_settings(place, "fisher", recipe, model, learnt[0], values), path)


def metrics(place: Workplace, name: str) -> list[dict[str, Any]]:
    """Return the metrics of each step of a run."""
    return _lines(place.out / name)


def remove(place: Workplace, name: str) -> None:
    """Remove a run's folder."""
    shutil.rmtree(place.out / name, ignore_errors=True)


def _settings(
    place: Workplace, name: str, recipe: str, model: Path, learnt: Path, values: Mapping[str, Any]
) -> Settings:
    own = {
        "output": str(place.out / name),
        "model": str(model),
        "tokenizer": str(place.tokenizer),
        "data.files": [str(learnt)],
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**own, **values}.items()]
    return read_settings(place.scale / f"{recipe}.yaml", overrides)


def _outcome(output: Path) -> Figures:
    lines = _lines(output)
    last = lines[-1]
    tokens, seconds = (sum(line[key] for line in lines) for key in ("tokens", "seconds"))
    return {
        "steps": last["step"],
        "tokens": int(tokens),
        "training_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        **{key: last[key] for key in _KEPT if key in last},
    }


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

"""Curves of a run: the loss beside the n-grams', what EWC keeps, and the load of the experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.article import recipes

if TYPE_CHECKING:
    from pathlib import Path

    from training.article.workplace import Figures, Workplace

_SMOOTHED = 20  # steps


def draw(place: Workplace, folder: Path) -> list[str]:
    """Write the pictures into a folder; their names.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pretrain, seeds = place.figures("pretrain"), place.figures("seeds")
    assert pretrain is not None
    assert seeds is not None
    names = ["article-loss.png", "article-experts.png", "article-ewc.png"]
    steps = recipes.metrics(place, "pretrain")
    _loss(steps, pretrain["losses"], folder / names[0])
    _experts(steps, folder / names[1])
    _ewc(seeds["seeds"], folder / names[2])
    return names


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _loss(steps: list[Figures], losses: dict[str, float], path: Path) -> None:
    figure, axes = _axes("Loss of the model beside n-grams", "step", "nats a token")
    axes.plot([step["step"] for step in steps], _smooth([step["loss"] for step in steps]), label="training")
    validated = [step for step in steps if step.get("validation_loss") is not None]
    axes.plot([s["step"] for s in validated], [s["validation_loss"] for s in validated], "o-", label="held out")
    for number, name in enumerate(("unigram", "bigram"), 2):
        axes.axhline(losses[name], linestyle="--", color=f"C{number}", label=f"{name}, held out")
    axes.legend()
    figure.savefig(path, dpi=100)


def _experts(steps: list[Figures], path: Path) -> None:
    figure, axes = _axes("Load of the experts", "step", "share of tokens, by an even share")
    numbers = [step["step"] for step in steps]
    for name, label in (("expert_load_max", "most used expert"), ("expert_load_min", "least used expert")):
        axes.plot(numbers, _smooth([step[name] for step in steps]), label=label)
    axes.plot(numbers, _smooth([step["dropped"] for step in steps]), label="share of choices dropped")
    axes.legend()
    figure.savefig(path, dpi=100)


def _ewc(seeds: list[Figures], path: Path) -> None:
    figure, axes = _axes("What is forgotten of prose while code is learnt", "seed", "nats a token")
    for at, (name, label) in enumerate((("plain", "plain fine-tuning"), ("ewc", "EWC"))):
        places = [seed + 0.4 * at - 0.2 for seed in range(len(seeds))]
        axes.bar(places, [one["forgotten"][name] for one in seeds], 0.38, label=label)
    axes.set_xticks(range(len(seeds)))
    axes.legend()
    figure.savefig(path, dpi=100)


def _smooth(values: list[float]) -> list[float]:
    """Means of each value and those shortly before it."""
    windows = (values[max(0, at - _SMOOTHED + 1) : at + 1] for at in range(len(values)))
    return [sum(window) / len(window) for window in windows]

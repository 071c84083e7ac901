"""What a classification head's logits say of a text: the score of each label, and which labels flag the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from server.heads.values import scores_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.engine_info import LabelActivation

_SAFE = ("safe",)  # in whatever case


@dataclass(frozen=True)
class Verdict:
    """What a model says of one text.

    Attributes:
        scores: of each label.
        hits: the labels that flag the text, the largest score first.
    """

    scores: dict[str, float]
    hits: tuple[str, ...]


@dataclass(frozen=True)
class Safety:
    """The labels that mean safe (--guard-safe-label), and the score from which others flag (--guard-threshold)."""

    safe_labels: tuple[str, ...] = ()
    threshold: float = 0.5

    def judge(self, labels: Sequence[str], activation: LabelActivation, logits: Sequence[float]) -> Verdict:
        """Return what logits say.

        A label that does not mean safe flags from the threshold on. Where labels exclude each other and one of them
        means safe, all others together do, too: then the likeliest of them is the hit.
        """
        scores = dict(zip(labels, scores_of(logits, activation), strict=True))
        harmful = sorted((label for label in labels if not self._is_safe(label)), key=scores.__getitem__, reverse=True)
        hits = [label for label in harmful if scores[label] >= self.threshold]
        excludes = activation == "softmax" and len(harmful) < len(labels)
        if not hits and excludes and sum(scores[label] for label in harmful) >= self.threshold:
            hits = harmful[:1]
        return Verdict(scores, tuple(hits))

    def check(self, model: str, labels: Sequence[str], activation: LabelActivation) -> None:
        """Refuse a guard whose labels cannot say what is safe.

        Raises:
            ConfigError: naming the flag, and the labels that there are.
        """
        if not labels:
            raise ConfigError(f"--guard {model} has no classification head; a guard is a model with labels")
        listed = ", ".join(labels)
        if activation == "none":
            raise ConfigError(f"--guard {model} has a head for a regression, whose scores are no probabilities")
        if unknown := [label for label in self.safe_labels if label not in labels]:
            raise ConfigError(f"--guard-safe-label is {unknown[0]}; the labels of --guard {model} are {listed}")
        num_safe = sum(map(self._is_safe, labels))
        if num_safe == len(labels):
            raise ConfigError(f"all labels of --guard {model} mean safe ({listed}): it would flag nothing")
        if activation == "softmax" and not num_safe:
            raise ConfigError(
                f"no label of --guard {model} is called safe: of {listed}, name those that mean it with "
                "--guard-safe-label"
            )

    def _is_safe(self, label: str) -> bool:
        return label in self.safe_labels if self.safe_labels else label.casefold() in _SAFE

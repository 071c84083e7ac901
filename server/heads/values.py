"""From a model's values to what an answer says: scores of logits, embeddings of a length, cosines; and pairs of texts.

Plain functions, which the routes and the offline API share.
"""

from __future__ import annotations

import math
import operator
from array import array
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.engine_info import EngineInfo, LabelActivation
    from server.inputs import ModelInput, Prompt
    from server.text.tokenizer import Tokenizer

T = TypeVar("T")


def scores_of(logits: Sequence[float], activation: LabelActivation) -> list[float]:
    """Return what a model says of its labels: probabilities that sum to 1, one for each label, or the logits."""
    if activation == "none":
        return list(logits)
    if activation == "sigmoid":
        return [math.exp(min(0.0, x)) / (1 + math.exp(-abs(x))) for x in logits]
    largest = max(logits)
    powers = [math.exp(x - largest) for x in logits]
    total = sum(powers)
    return [power / total for power in powers]


def is_cross_encoder(info: EngineInfo) -> bool:
    """Whether a model reads both texts of a pair at once and has one score for them."""
    return "classify" in info.tasks and len(info.labels) == 1


def pair_score(logits: Sequence[float], info: EngineInfo, *, raw: bool = False) -> float:
    """Return a cross-encoder's score of a pair; softmax of its one label would be 1 for each pair."""
    return scores_of(logits, "none" if raw or info.label_activation == "none" else "sigmoid")[0]


def shortened(vector: Sequence[float], dimensions: int | None, *, normalize: bool) -> array[float]:
    """Return the first `dimensions` numbers of an embedding, scaled to length 1 if wanted, as fp32."""
    kept = vector[:dimensions]
    length = math.hypot(*kept) if normalize else 1.0
    return array("f", kept) if length in (0.0, 1.0) else array("f", [value / length for value in kept])


def cosine(first: array[float], second: array[float]) -> float:
    """Return the cosine of vectors of length 1; what rounding adds beyond 1 is cut off."""
    product: float = sum(map(operator.mul, first, second))
    return max(-1.0, min(1.0, product))


def paired(first: list[T], second: list[T]) -> list[tuple[T, T]]:
    """Return pairs: the first side's only item with each of the second side's, or items at the same place."""
    return list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))


def joined(tokenizer: Tokenizer, read: Callable[[Prompt], ModelInput], *texts: ModelInput) -> ModelInput:
    """Return a text, or a pair, with the special tokens that stand around and between, which `read` makes inputs of."""
    frame = map(read, tokenizer.frame(*(text.token_ids for text in texts)))
    whole = next(frame)
    for text, special in zip(texts, frame, strict=True):
        whole = whole + text + special
    return whole

"""What answers of embeddings, classes, scores and ranks look like, and the numbers of embeddings in them."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Literal

from pydantic import BaseModel

from server.answers import AT_TIMES


class PoolingUsage(BaseModel):
    """The tokens of all texts, special ones included."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """A text's embedding: numbers, or the base64 of their bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """Embeddings in the order of their texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PoolingUsage


class TextClass(BaseModel):
    """The likeliest label of a text, and what the model says of each label, in the order of the checkpoint's."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class TextClasses(BaseModel):
    """Classes in the order of their texts."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[TextClass]
    usage: PoolingUsage


class Score(BaseModel):
    """The score of a pair of texts."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(BaseModel):
    """Scores in the order of the pairs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


class RankedText(BaseModel):
    """A document's text."""

    text: str


class Rank(BaseModel):
    """A document by its place in the request, and how well it fits the query."""

    index: int
    relevance_score: float
    document: RankedText = AT_TIMES


class Ranks(BaseModel):
    """Documents, the one that fits best first."""

    id: str
    model: str
    results: list[Rank]
    usage: PoolingUsage


def embedding_of(vector: array[float], *, as_base64: bool) -> list[float] | str:
    """Return an embedding as the answer has it: numbers, or the base64 of their bytes."""
    return _as_base64(vector) if as_base64 else vector.tolist()


def _as_base64(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector).decode()

"""From a prompt as an API has it to a ModelInput: token ids, and which modality each token has.

A token has the modality of its first character. Where nobody says what a prompt is, its fences do
(server.inputs.fences).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.engine_info import MODALITIES
from engine.errors import RequestError
from server.inputs.fences import Span, code_spans
from server.inputs.model_input import ModelInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.text.tokenizer import Tokenizer

_CODE = MODALITIES.index("code")
_OF_TEXTS = ("text", "code")


@dataclass(frozen=True)
class MarkedText:
    """A text that is code in places, whatever its fences and `modality` say.

    Attributes:
        code: the places, in order, apart from each other.
    """

    text: str
    code: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.text)


Prompt = str | MarkedText | list[int]


def modalities_of_texts(known: Sequence[str]) -> list[str]:
    """Return what a prompt of characters can be, of the modalities that a model knows."""
    return [modality for modality in _OF_TEXTS if modality in known]


def check_modality(name: str | None, known: Sequence[str]) -> None:
    """Refuse a request's `modality` unless the model, which knows these, can read text as that.

    Raises:
        RequestError: naming the valid ones.
    """
    valid = modalities_of_texts(known)
    if name is not None and name not in valid:
        reason = "a prompt of text is no image" if name == "image" else f"this model takes {' and '.join(valid)}"
        listed = ", ".join(f"'{modality}'" for modality in valid)
        raise RequestError(f"'modality' is '{name!s:.40}', but {reason}; valid here: {listed}", "modality")


def preprocess(
    tokenizer: Tokenizer,
    prompt: Prompt,
    known: Sequence[str],
    *,
    add_special_tokens: bool,
    modality: str | None = None,
    preceding: str = "",
) -> ModelInput:
    """Return what the model reads.

    Args:
        tokenizer: the model's.
        prompt: a text, or token ids, which stay as they are and are text unless `modality` says otherwise.
        known: names of the modalities that the model knows; of one that knows text alone, nothing is computed here.
        add_special_tokens: whether BOS is put in front of a text.
        modality: of the whole prompt, BOS included; a MarkedText's code stays code. None goes by fences.
        preceding: what the model reads before a text, for its fences; no part of what is returned.

    Raises:
        RequestError: the text is not valid Unicode, or the model does not know the modality.
    """
    check_modality(modality, known)
    if isinstance(prompt, list):
        return ModelInput(prompt, _all(modality, len(prompt)))
    text, code = (prompt, ()) if isinstance(prompt, str) else (prompt.text, prompt.code)
    if modality == "code" or "code" not in known:
        spans: Sequence[Span] = ()
    elif modality == "text":
        spans = code
    else:
        spans = code_spans(text, code, preceding)
    if not spans:
        token_ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ModelInput(token_ids, _all(modality, len(token_ids)))
    token_ids, starts = tokenizer.encode_with_starts(text, add_special_tokens=add_special_tokens)
    return ModelInput(token_ids, _by_spans(starts, spans))


def _all(modality: str | None, num_tokens: int) -> bytes:
    number = 0 if modality is None else MODALITIES.index(modality)
    return bytes([number]) * num_tokens if number else b""


def _by_spans(starts: Sequence[int], spans: Sequence[Span]) -> bytes:
    """Return code's id for tokens that start in one of these spans, and text's for the others; starts are ascending."""
    ids = bytearray(len(starts))
    first = 0
    for start, stop in spans:
        first = bisect_left(starts, start, first)
        last = bisect_left(starts, stop, first)
        ids[first:last] = itertools.repeat(_CODE, last - first)
        first = last
    return bytes(ids) if any(ids) else b""

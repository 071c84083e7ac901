"""Texts as tokens and their modalities, as the server reads prompts: the same tokenizer, BOS and fence rule.

A long text is encoded in pieces, so that memory stays small. Pieces end where words do; a tokenizer of another kind
than byte-level BPE may put a mark of its own at the beginning of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.engine_info import MODALITIES
from server.inputs.fences import code_spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from server.inputs.fences import Span
    from server.text.tokenizer import Tokenizer

SEPARATOR = "[SEP]"  # between title and content; text, if the tokenizer has no such token
_CODE = MODALITIES.index("code")
_PIECE = 1 << 16  # characters


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text's tokens.

    Attributes:
        ids: int32.
        starts: int64, the first character of each; ascending.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def inside(self, spans: Sequence[Span]) -> NDArray[np.bool_]:
        """Return which tokens begin within one of these spans, which are in order and apart from each other."""
        marked = np.zeros(len(self), dtype=bool)
        for start, stop in spans:
            first, last = np.searchsorted(self.starts, (start, stop))
            marked[first:last] = True
        return marked


def encode(tokenizer: Tokenizer, text: str, *, at_most: int | None = None, is_whole: bool = True) -> Tokens:
    """Return the tokens of a prompt: with BOS in front, where the model wants it.

    Args:
        tokenizer: the model's.
        text: any; special tokens in it are read as such.
        at_most: tokens that are wanted; the rest of a long text is not encoded.
        is_whole: whether what the tokenizer puts behind a text, if anything, stands behind this one.
    """
    ids: list[NDArray[np.int32]] = []
    starts: list[NDArray[np.int64]] = []
    num_tokens, tail = 0, []
    for begin, piece in _pieces(text):
        piece_ids, piece_starts = tokenizer.encode_with_starts(piece, add_special_tokens=False)
        if not ids:
            head, tail = tokenizer.frame(piece_ids)
            piece_ids, piece_starts = head + piece_ids, [0] * len(head) + piece_starts
        if is_whole and begin + len(piece) == len(text):
            piece_ids, piece_starts = piece_ids + tail, piece_starts + (piece_starts[-1:] or [0]) * len(tail)
        ids.append(np.array(piece_ids, dtype=np.int32))
        starts.append(np.array(piece_starts, dtype=np.int64) + begin)
        num_tokens += len(piece_ids)
        if at_most is not None and num_tokens >= at_most:
            break
    return Tokens(np.concatenate(ids)[:at_most], np.concatenate(starts)[:at_most])


def modalities(
    tokens: Tokens, text: str, num_modalities: int, *, is_code: bool | None = None, code: Sequence[Span] = ()
) -> NDArray[np.uint8]:
    """Return the modality id of each token.

    Args:
        tokens: of the text.
        text: where fences enclose code.
        num_modalities: that the model knows; all is text to one that knows no code.
        is_code: whether all of it is code; None asks the fences.
        code: places that are code, whatever the fences say.
    """
    if num_modalities <= _CODE or is_code is False:
        return np.zeros(len(tokens), dtype=np.uint8)
    if is_code:
        return np.full(len(tokens), _CODE, dtype=np.uint8)
    return tokens.inside(code_spans(text, code)).astype(np.uint8) * np.uint8(_CODE)


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yield a text in pieces of bounded length, each with the place where it begins."""
    begin = 0
    while len(text) - begin > _PIECE:
        end = _word_end(text, begin + _PIECE // 2, begin + _PIECE)
        yield begin, text[begin:end]
        begin = end
    yield begin, text[begin:]


def _word_end(text: str, low: int, high: int) -> int:
    """Return the last place in a range where byte-level BPE never joins what is on both sides, else the range's end."""
    for mark, width in (("\n", 1), (" ", 0)):  # a line's end belongs to what is before, a space to what follows
        place = high
        while (place := text.rfind(mark, low, place)) >= 0:
            if not text[place + 1].isspace() and not text[place - 1].isspace():
                return place + width
    return high

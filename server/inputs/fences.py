"""Where code stands in a text: between fences, and where a client says so. Knows characters, not tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Span = tuple[int, int]  # the first character, and the one behind the last

_FENCE = re.compile("`{3,}")


def code_spans(text: str, known: Sequence[Span] = (), preceding: str = "") -> list[Span]:
    """Return the spans of code: those that are known, and between them what fences enclose. Takes O(the text).

    A fence is three backticks or more, wherever it stands, and text itself. It is closed by one that is as long or
    longer; what follows an unclosed fence is code. Backticks in known spans are no fences.

    Args:
        text: the prompt.
        known: spans that are code, in order, apart from each other.
        preceding: what stands before the text, where a fence may be open.
    """
    length = 0  # of the fence that is open; 0 where none is
    for fence in _FENCE.finditer(preceding):
        length = _open_behind(fence, length)
    spans: list[Span] = []
    begin = position = 0  # of the code behind the open fence; of what is not looked at yet
    for start, stop in [*known, (len(text), len(text))]:
        for fence in _FENCE.finditer(text, position, start):
            was_open, length = length > 0, _open_behind(fence, length)
            if was_open and not length:
                spans.append((begin, fence.start()))
            elif length and not was_open:
                begin = fence.end()
        spans.append((begin if length else start, stop))
        begin = position = stop
    return [(start, stop) for start, stop in spans if start < stop]


def _open_behind(fence: re.Match[str], length: int) -> int:
    """Return the length of the fence that is open behind one, where one of this length was open before it."""
    size = fence.end() - fence.start()
    if not length:
        return size
    return 0 if size >= length else length

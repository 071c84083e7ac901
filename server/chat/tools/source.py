"""The text of an answer as it arrives, for parsers that are generators.

A parser reads at the source's cursor. It yields the pieces that are certain, and None where it needs more text; so it
is written as if all text were there, and gives the same pieces however the text is cut.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from server.chat.pieces import Piece

T = TypeVar("T")
Steps = Generator[Piece | None, None, T]
WHITE_SPACE = " \t\r\n"


class NotACallError(Exception):
    """What looked like a call is none: the text is content."""


class Source:
    """Text with a cursor.

    Attributes:
        final: whether all text is there.
    """

    def __init__(self) -> None:
        self._text, self._at = "", 0
        self.final = False

    def append(self, text: str, *, final: bool) -> None:
        """Add what arrived."""
        self._text += text
        self.final = final

    @property
    def rest(self) -> str:
        """What has arrived and lies behind the cursor."""
        return self._text[self._at :]

    def take(self, length: int) -> str:
        """Return text at the cursor, and move the cursor behind it."""
        start, self._at = self._at, self._at + length
        return self._text[start : self._at]

    def commit(self) -> None:
        """Forget what lies before the cursor: `rewind` comes back to here."""
        self._text, self._at = self.rest, 0

    def rewind(self) -> None:
        """Move the cursor back to where `commit` was last called."""
        self._at = 0


def skip(source: Source, chars: str = WHITE_SPACE) -> Steps[None]:
    """Move behind these characters."""
    while True:
        rest = source.rest
        source.take(len(rest) - len(rest.lstrip(chars)))
        if source.rest or source.final:
            return
        yield None


def accept(source: Source, *markers: str) -> Steps[str | None]:
    """Move behind the marker at the cursor and return it; None if there is none of them."""
    while True:
        rest = source.rest
        for marker in markers:
            if rest.startswith(marker):
                return source.take(len(marker))
        if source.final or not any(marker.startswith(rest) for marker in markers):
            return None
        yield None


def expect(source: Source, *markers: str) -> Steps[str]:
    """Move behind the marker at the cursor and return it.

    Raises:
        NotACallError: another text is there.
    """
    marker = yield from accept(source, *markers)
    if marker is None:
        raise NotACallError
    return marker


def until(source: Source, *markers: str, limit: int) -> Steps[tuple[str, str]]:
    """Return the text before the first of these markers, and the marker; move behind it.

    Raises:
        NotACallError: none of them comes within `limit` characters.
    """
    while True:
        rest = source.rest
        found = [(at, marker) for marker in markers if (at := rest.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            text = source.take(at)
            source.take(len(marker))
            if at > limit:
                raise NotACallError
            return text, marker
        if source.final or len(rest) > limit + max(map(len, markers)):
            raise NotACallError
        yield None

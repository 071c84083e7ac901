"""Finds the end of a JSON object in text that is still arriving, without waiting for the end."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from server.chat.pieces import ToolCallArguments

if TYPE_CHECKING:
    from server.chat.tools.source import Source, Steps

_STRUCTURE = re.compile(r'["{}\[\]]|[^\s\w+\-.,:]')  # what opens or closes, and what cannot be there
_IN_STRING = re.compile(r'["\\]')


class JsonScanner:
    """Follows one object or array through brackets and strings; what lies between them is not checked.

    Attributes:
        ended: the last bracket is closed.
        broken: something came that no JSON has there.
    """

    def __init__(self, depth: int = 0) -> None:
        """Begin before an object or array; or, with `depth`, inside as many of them."""
        self._depth, self._in_string, self._escaped = depth, False, False
        self.ended = self.broken = False

    def feed(self, text: str) -> int:
        """Take more text; return how many characters of it belong to the object."""
        at = 0
        while at < len(text) and not (self.ended or self.broken):
            at = self._string(text, at) if self._in_string else self._structure(text, at)
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        self._in_string, self._escaped = found[0] != '"', found[0] == "\\"
        return found.end()

    def _structure(self, text: str, at: int) -> int:
        found = _STRUCTURE.search(text, at)
        if found is None:
            return len(text)
        if found[0] == '"':
            self._in_string = True
        elif found[0] in "{[":
            self._depth += 1
        elif found[0] in "}]":
            self._depth -= 1
            self.ended = self._depth == 0
        else:
            self.broken = True
            return found.start()
        return found.end()


def stream_arguments(source: Source, index: int) -> Steps[None]:
    """Give out the object at the cursor as a call's arguments, as it comes."""
    scanner = JsonScanner()
    while True:
        if length := scanner.feed(source.rest):
            text = source.take(length)
            source.commit()
            yield ToolCallArguments(index, text)
        if scanner.ended or scanner.broken or source.final:
            return
        yield None


def is_json_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False

"""What a format of tool calls is, and the parser that reads an answer in any of them."""

from __future__ import annotations

import json
import secrets
import string
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from server.chat.pieces import Content, Piece, ToolCallStart
from server.chat.tools.source import NotACallError, Source, Steps
from server.text.choice_text import stop_prefix_length

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.chat.tools.lark import Lark

_MAX_BROKEN = 32  # openers without a call; what follows so many is content, unread
_ALPHABET = string.ascii_letters + string.digits


class Calls:
    """The calls of one answer: which functions there are, and how many calls were begun."""

    def __init__(self, names: Iterable[str], *, parallel: bool = True, id_length: int | None = None) -> None:
        """`parallel`: more than one call is let through. `id_length`: ids are as many alphanumerics."""
        self._names, self._parallel, self._id_length = frozenset(names), parallel, id_length
        self.count = 0

    @property
    def is_full(self) -> bool:
        """Whether no further call is let through."""
        return self.count > 0 and not self._parallel

    def start(self, name: str) -> ToolCallStart:
        """Begin a call.

        Raises:
            NotACallError: there is no such function.
        """
        if name not in self._names or self.is_full:
            raise NotACallError
        self.count += 1
        return ToolCallStart(self.count - 1, new_call_id(self._id_length), name)

    def begin(self, source: Source, name: str) -> Steps[int]:
        """Give out that a call begins, which cannot be content any more; return its index. Raises as `start` does."""
        started = self.start(name)
        source.commit()
        yield started
        return started.index


def new_call_id(length: int | None = None) -> str:
    """Return an id as OpenAI's, or of `length` alphanumerics."""
    drawn = "".join(secrets.choice(_ALPHABET) for _ in range(length or 24))
    return drawn if length else f"call_{drawn}"


class ToolFormat(ABC):
    """How a family of models writes tool calls.

    Attributes:
        name: as --tool-parser has it.
        openers: what begins calls in an answer.
        markers: what may be special tokens in the model's vocabulary and must stay in the text.
        only_at_start: calls begin with the answer or not at all.
        call_end: text that ends each call, and nothing else; None if there is no such text.
        one_call_a_block: each call has an opener of its own; else one opener is for all calls.
        separator: what stands between two such calls.
        id_length: ids are as many alphanumerics; None is OpenAI's form.
    """

    name: ClassVar[str]
    openers: tuple[str, ...]
    markers: tuple[str, ...] = ()
    only_at_start: ClassVar[bool] = False
    call_end: str | None = None
    one_call_a_block: bool = False
    separator: ClassVar[str] = ""
    id_length: ClassVar[int | None] = None

    @abstractmethod
    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """Read one opener and the calls that it begins; the cursor is at the opener.

        Raises:
            NotACallError: no call was begun, or calls are `is_full`; what was not committed is content.
        """

    @abstractmethod
    def instructions(self, functions: list[dict[str, Any]]) -> str:
        """Return the system message that tells a model of functions, for templates that do not."""

    @property
    def opener(self) -> str:
        """What this model begins calls with, as it was taught."""
        return self.openers[0]

    @abstractmethod
    def block(self, lark: Lark, schemas: dict[str, dict[str, Any]], most: int) -> str:
        """Return a Lark expression for what follows an opener: a call, or up to `most`.

        Raises:
            RequestError: with the reason against one of `schemas`, which has each function's parameters.
        """


class ToolParser:
    """Finds the calls in one choice's answer; the rest is content, and so is what only looks like a call.

    Attributes:
        has_ended: the answer has its only call, and nothing that follows is read.
    """

    def __init__(self, tool_format: ToolFormat, calls: Calls) -> None:
        self._format, self._calls, self._source = tool_format, calls, Source()
        self._steps = self._read()
        self.has_ended = False

    def push(self, text: str, *, final: bool) -> list[Piece]:
        """Take more text of the answer; return what is certain by now. `final`: all."""
        if self.has_ended:
            return []
        self._source.append(text, final=final)
        pieces = []
        for piece in self._steps:
            if piece is None:
                break
            pieces.append(piece)
        else:
            self.has_ended = True
        return pieces

    def _read(self) -> Steps[None]:
        source, broken = self._source, 0
        while (yield from self._content()):
            try:
                yield from self._format.read(source, self._calls)
                source.commit()
            except NotACallError:
                source.rewind()
                broken += 1
                if self._calls.is_full:
                    return
                if text := self._opening():
                    yield Content(text)
                if self._format.only_at_start or broken == _MAX_BROKEN:
                    break
            if self._calls.is_full:
                return
        while True:
            if rest := source.take(len(source.rest)):
                source.commit()
                yield Content(rest)
            yield None

    def _content(self) -> Steps[bool]:
        """Give out content up to the next opener; white space before it is dropped. False at the end."""
        source = self._source
        if self._format.only_at_start:
            return (yield from self._starts_with_opener())
        while True:
            rest = source.rest
            opener = min((at for at in map(rest.find, self._format.openers) if at >= 0), default=None)
            if opener is not None:
                certain = rest[:opener].rstrip()
            elif source.final:
                certain = self._last(rest)
            else:
                certain = rest[: len(rest) - stop_prefix_length(rest, self._format.openers)].rstrip()
            source.take(len(certain))
            source.commit()
            if certain:
                yield Content(certain)
            if opener is not None:
                source.take(opener - len(certain))  # white space, which `rewind` brings back
                return True
            if source.final:
                source.take(len(source.rest))
                source.commit()
                return False
            yield None

    def _last(self, rest: str) -> str:
        """Return what is content at an answer's end: behind calls, a marker that was cut off is none."""
        if not self._calls.count:
            return rest
        markers = (*self._format.openers, *filter(None, (self._format.call_end,)))
        kept = rest[: len(rest) - stop_prefix_length(rest, markers)]
        return kept if kept.strip() else ""

    def _starts_with_opener(self) -> Steps[bool]:
        while True:
            rest = self._source.rest
            begun = rest.lstrip()
            if begun.startswith(self._format.openers):
                self._source.take(len(rest) - len(begun))
                return not self._calls.count
            if self._source.final or not any(opener.startswith(begun) for opener in self._format.openers):
                return False
            yield None

    def _opening(self) -> str:
        """Take white space and an opener that begins no call."""
        source = self._source
        rest = source.rest
        begun = rest.lstrip()
        opener = next((opener for opener in self._format.openers if begun.startswith(opener)), "")
        text = source.take(len(rest) - len(begun) + len(opener))
        source.commit()
        return text


def one_a_line(functions: list[dict[str, Any]]) -> str:
    """Return functions as JSON, a line for each."""
    return "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)

"""Where a chat's parts of type code stand in the prompt that the chat template made of them.

The template renders the conversation twice: as it is, which is the prompt, and with marks around each such part. Marks
are digits, which templates neither trim nor escape, and begin with a number that nobody can guess.
"""

from __future__ import annotations

import itertools
import re
import secrets
from typing import TYPE_CHECKING, NamedTuple

from server.inputs.preprocess import MarkedText

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.inputs.fences import Span

_BEGINS, _ENDS = "1", "2"
_DIGITS = 7  # of a part's number


class _Part(NamedTuple):
    """A part's code, and the spaces around it: templates may trim them, so that marks stand within."""

    before: str
    code: str
    after: str


class CodeParts:
    """The code of one conversation: `marked` puts it in, part for part, and `find` finds it again."""

    def __init__(self) -> None:
        self._nonce = f"{secrets.randbelow(10**24):024}"
        self._parts: list[_Part] = []

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._parts)

    def marked(self, text: str) -> str:
        """Return a part's text with marks around its code."""
        code = text.strip()
        if not code:
            return text
        before, _, after = text.partition(code)
        number = f"{len(self._parts):0{_DIGITS}}"
        self._parts.append(_Part(before, code, after))
        return f"{before}{self._nonce}{_BEGINS}{number}{code}{self._nonce}{_ENDS}{number}{after}"

    def find(self, prompt: str, marked_prompt: str) -> MarkedText:
        """Return the prompt with the places of its code.

        Args:
            prompt: the conversation as the template renders it.
            marked_prompt: the same with `marked` texts. If the template did other things with these than with texts
                without marks, the prompt is searched for the code instead, in order.
        """
        pieces = re.split(f"{self._nonce}([{_BEGINS}{_ENDS}])([0-9]{{{_DIGITS}}})", marked_prompt)
        if self._nonce in prompt or "".join(pieces[::3]) != prompt:
            return MarkedText(prompt, tuple(self._searched(prompt)))
        positions = itertools.accumulate(map(len, pieces[::3]))
        marks = list(zip(pieces[1::3], map(int, pieces[2::3]), positions, strict=False))
        return MarkedText(prompt, tuple(self._between(prompt, marks)))

    def _between(self, prompt: str, marks: list[tuple[str, int, int]]) -> Iterator[Span]:
        """Yield the places; where the template has cut a mark off, the part's own text shows how far it goes.

        `marks` are the kind of each, the number of its part, and its position in the prompt.
        """
        last, rest = 0, marks[::-1]
        while rest:
            kind, number, begin = rest.pop()
            part, end = self._parts[number], begin
            is_whole = kind == _BEGINS and bool(rest) and rest[-1][:2] == (_ENDS, number)
            if is_whole:
                end = rest.pop()[2]
            before = part.before if kind == _BEGINS else part.before + part.code
            after = part.after if kind == _ENDS or is_whole else part.code + part.after
            start = begin - _num_equal(prompt[max(0, begin - len(before)) : begin][::-1], before[::-1])
            stop = end + _num_equal(prompt[end : end + len(after)], after)
            if (start := max(last, start)) < stop:
                yield start, stop
                last = stop

    def _searched(self, prompt: str) -> Iterator[Span]:
        position = 0
        for part in self._parts:
            start = prompt.find(part.code, position)
            if start >= 0:
                position = start + len(part.code)
                yield start, position


def _num_equal(one: str, other: str) -> int:
    """How many characters two texts begin with that are the same."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

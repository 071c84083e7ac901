"""Splits R1-style output: text between <think> and </think> is reasoning, text after it is the answer.

Reasoning begins with the output if the prompt ends with <think> (R1's chat template writes it there), or if the output
itself begins with <think>. Text that may be part of a marker is held back until the marker is complete or excluded.
"""

from __future__ import annotations

from server.text.choice_text import stop_prefix_length

_OPEN, _CLOSE = MARKERS = "<think>", "</think>"


def starts_inside(prompt: str) -> bool:
    """Whether the output of a prompt begins inside reasoning."""
    return prompt.rstrip().endswith(_OPEN)


def stays_inside(message: str) -> bool:
    """Whether what continues a message is reasoning."""
    return message.rfind(_OPEN) > message.rfind(_CLOSE)


class ReasoningSplitter:
    """Splits one choice's text as it grows. Newlines around a marker belong to neither part.

    Attributes:
        has_begun: there is reasoning, as far as the text shows.
    """

    def __init__(self, *, inside: bool) -> None:
        self._held, self.has_begun = "", inside
        self._inside: bool | None = True if inside else None  # None: too early to say
        self._at_start = True  # of reasoning or of the answer; newlines are dropped there

    @property
    def has_ended(self) -> bool:
        """Whether no more reasoning can come."""
        return self._inside is False

    def push(self, text: str, *, final: bool) -> tuple[str, str]:
        """Take a delta's text; return new text as (reasoning, answer). If `final`, nothing is held back."""
        self._held += text
        reasoning = answer = ""
        if self._inside is None:
            self._open(final=final)
        if self._inside:
            reasoning, closed = self._reasoning(final=final)
            if not closed:
                return reasoning, ""
        if self._inside is False:
            answer = self._take(self._held)
        return reasoning, answer

    def _open(self, *, final: bool) -> None:
        """Decide whether the output begins with <think>, once enough text is there."""
        start = self._held.lstrip()
        if start.startswith(_OPEN):
            self._held, self._inside, self.has_begun = start[len(_OPEN) :], True, True
        elif final or not _OPEN.startswith(start):
            self._inside, self._at_start = False, False

    def _reasoning(self, *, final: bool) -> tuple[str, bool]:
        before, closed, after = self._held.partition(_CLOSE)
        if closed:
            reasoning = self._take(before).rstrip("\n")
            self._held, self._inside, self._at_start = after, False, True
            return reasoning, True
        # Trailing newlines are held back too: they are dropped if the marker follows.
        keep = 0 if final else stop_prefix_length(self._held, (_CLOSE,))
        body = self._held[: len(self._held) - keep]
        certain = body if final else body.rstrip("\n")
        rest = self._held[len(certain) :]
        return self._take(certain, rest), False

    def _take(self, text: str, rest: str = "") -> str:
        self._held = rest
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        return text

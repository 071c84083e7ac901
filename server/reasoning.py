"""R1-style output in two parts: what stands between <think> and </think> is reasoning, the rest is the answer.

A prompt that ends with <think> (R1's chat template writes it) puts the output inside from its first token; otherwise an
output that begins with <think> does. Text that may be part of a marker is held back until that is certain.
"""

from __future__ import annotations

from server.choice_text import stop_prefix_length

_OPEN, _CLOSE = "<think>", "</think>"


def starts_inside(prompt: str) -> bool:
    """Whether a prompt leaves its output in the middle of reasoning."""
    return prompt.rstrip().endswith(_OPEN)


class ReasoningSplitter:
    """Splits one choice's text as it grows. Newlines around the markers belong to neither part."""

    def __init__(self, *, inside: bool) -> None:
        self._held = ""
        self._inside: bool | None = True if inside else None  # None: too early to say
        self._at_start = True  # of the part that is being written, where newlines are dropped

    def push(self, text: str, *, final: bool) -> tuple[str, str]:
        """Take a delta's text; give (reasoning, answer) that became certain. `final` gives out all that was held."""
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
        """Decide how the output begins, once that is certain."""
        start = self._held.lstrip()
        if start.startswith(_OPEN):
            self._held, self._inside = start[len(_OPEN) :], True
        elif final or not _OPEN.startswith(start):
            self._inside, self._at_start = False, False

    def _reasoning(self, *, final: bool) -> tuple[str, bool]:
        before, closed, after = self._held.partition(_CLOSE)
        if closed:
            reasoning = self._take(before).rstrip("\n")
            self._held, self._inside, self._at_start = after, False, True
            return reasoning, True
        # Trailing newlines wait too: if the marker follows, they are dropped.
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

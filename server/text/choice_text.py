"""One choice's text as it grows: token ids become text, which is cut at a stop string.

Owns what may be given out: text that may be the beginning of a stop string is held back. Requests and their sequences
are `server.generation`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from engine.protocol import FinishReason

if TYPE_CHECKING:
    from engine.protocol import SequenceOutput, TokenLogprobs
    from server.text.detokenizer import Detokenizer

Ending = FinishReason | Literal["content_filter"]  # the latter is the guard's


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A token with its logprobs, and where its text begins in the choice's text."""

    token_id: int
    text_offset: int
    logprobs: TokenLogprobs


@dataclass(slots=True)
class Delta:
    """A piece of one choice: new text, and the tokens that it came from.

    Attributes:
        is_first: whether the piece begins its choice.
        prompt_logprobs: one entry for each prompt token but the first, if asked for; in the first delta.
        finish_reason: set in the last delta; "content_filter" where the guard ends the choice.
        stop_string: the stop string that ended the choice, if one did; in the last delta.
    """

    choice: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    reports: list[TokenReport] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: Ending | None = None
    is_first: bool = False
    stop_string: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the choice ends where the guard flagged it."""
        return self.finish_reason == "content_filter"

    @property
    def num_reports(self) -> int:
        """How many tokens have logprobs, the prompt's included."""
        return len(self.reports) + len(self.prompt_logprobs or ())

    def extend(self, later: Delta) -> None:
        """Append the piece that follows."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.reports += later.reports
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs
        self.finish_reason, self.stop_string = later.finish_reason, later.stop_string


class ChoiceText:
    """Turns one sequence's outputs into deltas."""

    def __init__(self, choice: int, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self._choice, self._detokenizer, self._stop = choice, detokenizer, stop
        self._held = ""  # text that may be the beginning of a stop string
        self._num_chars = 0  # of all text so far, held back or given out
        self._pending = Delta(choice, is_first=True)

    def push(self, output: SequenceOutput) -> Delta | None:
        """Take a step's output; return a delta if there is new text to give out or the sequence has ended.

        A delta has all tokens since the last delta. If the delta's finish_reason is "stop" and the output's is None,
        a stop string was found in the text.
        """
        delta = self._pending
        delta.finish_reason = output.finish_reason
        if output.prompt_logprobs is not None:
            delta.prompt_logprobs = output.prompt_logprobs
        self._add_tokens(output)
        text = self._held
        if (end := find_stop(text, self._stop)) is not None:
            delta.text, self._held, delta.finish_reason = text[:end], "", "stop"
            delta.stop_string = next(stop for stop in self._stop if text.startswith(stop, end))
        else:
            held = 0 if output.finish_reason is not None else stop_prefix_length(text, self._stop)
            delta.text, self._held = text[: len(text) - held], text[len(text) - held :]
        if not delta.text and delta.finish_reason is None:
            return None
        self._pending = Delta(self._choice)
        return delta

    def _add_tokens(self, output: SequenceOutput) -> None:
        for i, token_id in enumerate(output.token_ids):
            self._pending.token_ids.append(token_id)
            if output.logprobs is not None:
                self._pending.reports.append(TokenReport(token_id, self._num_chars, output.logprobs[i]))
            if token_id != output.stop_token_id:  # the token that ends a sequence is not part of its text
                self._add_text(self._detokenizer.push(token_id))
        if output.finish_reason is not None:
            self._add_text(self._detokenizer.flush())

    def _add_text(self, text: str) -> None:
        self._held += text
        self._num_chars += len(text)


def find_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Return where the earliest stop string begins."""
    return min((at for at in map(text.find, stop) if at >= 0), default=None)


def stop_prefix_length(text: str, stop: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that is the beginning of a stop string."""
    longest = min(len(text), max(map(len, stop), default=0))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)

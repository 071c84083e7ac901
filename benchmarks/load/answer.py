"""One streamed answer: arrival times of its tokens, and its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode  # skips all that is not named above


@dataclass
class Answer:
    """The result of one request. Times are time.perf_counter's seconds.

    Attributes:
        key: the API key of the request.
        start: when it was due (open loop) or sent (closed loop).
        lag: seconds by which the client sent it late.
        end: when its last byte came.
        status: the HTTP status, 0 if there was none.
        error: what went wrong, None if nothing did.
        retry_after: seconds that a refusal asked to wait.
        arrivals: when each piece of text came.
        counts: tokens of each piece, where the server says so; else None.
        usage_tokens: output tokens by the server's own count; None without one.
    """

    key: str = ""
    start: float = 0.0
    lag: float = 0.0
    end: float = 0.0
    status: int = 0
    error: str | None = None
    retry_after: float | None = None
    arrivals: list[float] = field(default_factory=list)
    counts: list[int] | None = None
    usage_tokens: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None

    @property
    def output_tokens(self) -> int:
        """Output tokens: from usage, else from token ids, else one for each piece."""
        if self.usage_tokens is not None:
            return self.usage_tokens
        return sum(self.counts) if self.counts is not None else len(self.arrivals)

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return self.arrivals[0] - self.start if self.arrivals else None

    @property
    def e2e(self) -> float:
        """Seconds to the end."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None for a single one."""
        if self.output_tokens < 2 or not self.arrivals:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)

    def gaps(self) -> list[tuple[float, float]]:
        """(seconds between tokens, number of tokens); the wait for a piece is divided among its tokens.

        Without token ids, pieces are taken to carry equally many of the tokens that the server counted.
        """
        if not self.arrivals:
            return []
        waits = [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]
        if self.counts is not None:
            first, *others = self.counts
            gaps = [(wait / count, float(count)) for wait, count in zip(waits, others, strict=True)]
            return [*gaps, (0.0, first - 1.0)] if first > 1 else gaps
        if not waits:
            return []
        each = max(1.0, (self.output_tokens - 1) / len(waits))
        return [(wait / each, each) for wait in waits]


class AnswerReader:
    """Reads an answer's body into an `Answer`, piece by piece."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._rest = b""
        self._counts: list[int] = []
        self._done = False

    def take(self, now: float, body: bytes) -> None:
        """Take the next bytes of an event stream, or of an error's body."""
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(now, line[5:].strip())

    def finish(self) -> None:
        """Check the complete body."""
        answer = self._answer
        if answer.status != 200:
            answer.error = str(answer.status)
        elif answer.error is None and not self._done:
            answer.error = "incomplete"  # a stream ends with [DONE]
        if self._counts and len(self._counts) == len(answer.arrivals):
            answer.counts = self._counts

    def _event(self, now: float, data: bytes) -> None:
        answer = self._answer
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = _decode(data)
        except msgspec.DecodeError:
            answer.error = "not JSON"
            return
        if event.error is not None:
            answer.error = "error event"
        if event.usage is not None:
            self._usage(event.usage)
        for choice in event.choices:
            self._choice(now, choice)

    def _choice(self, now: float, choice: _Choice) -> None:
        answer = self._answer
        text = choice.text
        if choice.delta is not None:
            text = choice.delta.content or choice.delta.reasoning_content
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        is_only = choice.finish_reason is not None and not answer.arrivals  # all tokens were special ones
        if text or choice.token_ids or is_only:
            answer.arrivals.append(now)
            if choice.token_ids:
                self._counts.append(len(choice.token_ids))

    def _usage(self, usage: _Usage) -> None:
        answer = self._answer
        answer.usage_tokens, answer.prompt_tokens = usage.completion_tokens, usage.prompt_tokens
        if usage.prompt_tokens_details is not None:
            answer.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0

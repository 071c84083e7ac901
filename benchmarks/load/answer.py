"""One streamed answer: arrival times of its tokens, and its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
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
        counts: tokens of each piece that came with token ids.
        usage_tokens: output tokens by the server's own count; None without one.
        is_done: whether [DONE] came.
    """

    key: str = ""
    start: float = 0.0
    lag: float = 0.0
    end: float = 0.0
    status: int = 0
    error: str | None = None
    retry_after: float | None = None
    arrivals: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    usage_tokens: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    is_done: bool = False

    @property
    def has_counts(self) -> bool:
        """Whether the server said of each piece how many tokens it has."""
        return len(self.counts) == len(self.arrivals)

    @property
    def output_tokens(self) -> int:
        """Output tokens: from usage, else from token ids, else one for each piece."""
        if self.usage_tokens is not None:
            return self.usage_tokens
        return sum(self.counts) if self.has_counts else len(self.arrivals)

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
        waits = [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]
        if self.has_counts and self.arrivals:
            first, *others = self.counts
            gaps = [(wait / count, float(count)) for wait, count in zip(waits, others, strict=True)]
            return [*gaps, (0.0, first - 1.0)] if first > 1 else gaps
        each = max(1.0, (self.output_tokens - 1) / max(1, len(waits)))
        return [(wait / each, each) for wait in waits]

    def take(self, now: float, line: bytes) -> None:
        """Take one line of an event stream, or of an error's body."""
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            event = _decode(data)
        except msgspec.DecodeError:
            self.error = "not JSON"
            return
        if event.error is not None:
            self.error = "error event"
        if event.usage is not None:
            self.usage_tokens = event.usage.get("completion_tokens")
            self.prompt_tokens = event.usage.get("prompt_tokens") or 0
            self.cached_tokens = (event.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        for choice in event.choices:
            self._take_choice(now, choice)

    def _take_choice(self, now: float, choice: _Choice) -> None:
        delta = choice.delta or {}
        self.finish_reason = choice.finish_reason or self.finish_reason
        is_only = choice.finish_reason is not None and not self.arrivals  # all tokens were special ones
        if choice.text or delta.get("content") or delta.get("reasoning_content") or choice.token_ids or is_only:
            self.arrivals.append(now)
            if choice.token_ids:
                self.counts.append(len(choice.token_ids))

    def finish(self) -> None:
        """Check the complete answer."""
        if self.status != 200:
            self.error = str(self.status)
        elif self.error is None and not self.is_done:
            self.error = "incomplete"

"""One API request's generation: its prompts become engine requests, their outputs become text deltas.

Owns text: detokenising, stop strings, and how far what is known may be given out. Routes turn deltas into JSON.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import DeadlineError, DeepseekServeError, GenerationError, OverloadedError
from engine.protocol import FinishReason, GenerateRequest, SamplingParams, SequenceOutput, Terms, TokenLogprobs
from server.metrics import RequestTimer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from server.admission import Ticket
    from server.detokenizer import Detokenizer
    from server.engine_client import EngineClient
    from server.metrics import Metrics
    from server.output_stream import OutputStream
    from server.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A token with its logprobs, and where its text begins in the choice's text."""

    token_id: int
    text_offset: int
    logprobs: TokenLogprobs


@dataclass(slots=True)
class Delta:
    """What became certain of one choice: text, and the tokens that it came from."""

    choice: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    reports: list[TokenReport] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None


class ChoiceText:
    """One sequence's text as it grows: detokenised, cut at a stop string, held back where one may be starting."""

    def __init__(self, choice: int, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self._choice, self._detokenizer, self._stop = choice, detokenizer, stop
        self._held = ""  # text that may be the beginning of a stop string
        self._num_chars = 0  # of all text so far, held or given out
        self._pending = Delta(choice)

    def push(self, output: SequenceOutput) -> Delta | None:
        """Take a step's output; give a delta if text became certain or the sequence ended.

        A delta has all tokens since the one before it. If its finish_reason is "stop" and the output's is None, a
        stop string was found here.
        """
        delta = self._pending
        delta.finish_reason = output.finish_reason
        if output.prompt_logprobs is not None:
            delta.prompt_logprobs = output.prompt_logprobs
        for i, token_id in enumerate(output.token_ids):
            delta.token_ids.append(token_id)
            if output.logprobs is not None:
                delta.reports.append(TokenReport(token_id, self._num_chars, output.logprobs[i]))
            if token_id != output.stop_token_id:  # the token that ends a sequence is not part of its text
                self._grow(self._detokenizer.push(token_id))
        if output.finish_reason is not None:
            self._grow(self._detokenizer.flush())
        text = self._held
        if (end := find_stop(text, self._stop)) is not None:
            delta.text, self._held, delta.finish_reason = text[:end], "", "stop"
        else:
            held = 0 if output.finish_reason is not None else stop_prefix_length(text, self._stop)
            delta.text, self._held = text[: len(text) - held], text[len(text) - held :]
        if not delta.text and delta.finish_reason is None:
            return None
        self._pending = Delta(self._choice)
        return delta

    def _grow(self, piece: str) -> None:
        self._held += piece
        self._num_chars += len(piece)


def find_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the earliest stop string begins."""
    return min((at for at in map(text.find, stop) if at >= 0), default=None)


def stop_prefix_length(text: str, stop: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that a stop string begins with."""
    longest = min(len(text), max(map(len, stop), default=0))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)


class Generation:
    """The prompts of one API request, `n` choices each: choice number = prompt number * n + index."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        metrics: Metrics,
        prompts: list[list[int]],
        sampling: SamplingParams,
        *,
        n: int,
        skip_special_tokens: bool,
        terms: Terms,
        ticket: Ticket,
    ) -> None:
        """Check the request against the engine's limits.

        Raises:
            RequestError: it can never be computed here.
            EngineUnavailableError: no engine takes requests now.
        """
        info = client.require_info()
        for prompt in prompts:
            info.check(prompt, sampling)
        self.prompts, self.n, self.sampling = prompts, n, sampling
        self.num_output_tokens = self.num_cached_tokens = 0
        self._client, self._metrics, self._terms, self._ticket = client, metrics, terms, ticket
        ticket.resize(self.num_prompt_tokens)
        self._texts = [
            ChoiceText(i, tokenizer.detokenizer(skip_special_tokens=skip_special_tokens), sampling.stop)
            for i in range(self.num_choices)
        ]

    @property
    def num_choices(self) -> int:
        """Choices over all prompts."""
        return len(self.prompts) * self.n

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(map(len, self.prompts))

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Run it. Closing the generator, or cancelling who waits on it, aborts what still runs.

        Raises:
            GenerationError, EngineUnavailableError: it ended in the middle.
        """
        numbers = {f"{uuid.uuid4().hex}": i for i in range(len(self.prompts))}
        requests = [
            GenerateRequest(request_id, self.prompts[i], self.sampling, self.n, self._terms)
            for request_id, i in numbers.items()
        ]
        timer = RequestTimer(self._metrics, self._terms.arrival_time, self.num_prompt_tokens)
        num_running, started = self.num_choices, set()
        try:
            with self._client.submit(requests) as stream:
                async for output in stream:
                    choice = numbers[output.request_id] * self.n + output.index
                    if output.queue_time is not None and output.request_id not in started:
                        started.add(output.request_id)
                        self._ticket.start()
                    timer.tokens(choice, len(output.token_ids), output.queue_time)
                    self.num_output_tokens += len(output.token_ids)
                    if output.index == 0:  # prompt tokens are counted once, whatever n is
                        self.num_cached_tokens += output.num_cached_tokens
                    delta = self._take(output, choice, stream)
                    reason = output.finish_reason or (delta.finish_reason if delta is not None else None)
                    if reason is not None:
                        self._metrics.count_finished(reason)
                        num_running -= 1
                    if reason == "timeout":
                        raise self._too_late(has_started=output.request_id in started)
                    if reason == "error":
                        raise GenerationError("The model's output for this request is not a number; it was ended.")
                    if delta is not None:
                        yield delta
        finally:
            for _ in range(num_running):
                self._metrics.count_finished("abort")
            timer.end()

    def _too_late(self, *, has_started: bool) -> DeepseekServeError:
        """Why a sequence ran out of time: its request's, or that for waiting, which the server may set."""
        seconds = now() - self._terms.arrival_time
        if not has_started and (self._terms.deadline is None or now() < self._terms.deadline):
            message = f"The server is busy: the request waited {seconds:.1f} s and was not started."
            return OverloadedError(message, self._ticket.retry_after())
        return DeadlineError(f"The request was ended unfinished after {seconds:.1f} s, its time.")

    def _take(self, output: SequenceOutput, choice: int, stream: OutputStream) -> Delta | None:
        delta = self._texts[choice].push(output)
        if delta is not None and delta.finish_reason is not None and output.finish_reason is None:
            stream.abort(output.request_id, output.index)  # a stop string: the engine would go on
        return delta


def now() -> float:
    """The clock that arrival times are taken from; all processes of a machine share it."""
    return time.monotonic()

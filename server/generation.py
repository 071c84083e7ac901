"""One API request's generation: prompts become engine requests, the engine's outputs become deltas of text.

Owns the request's counts and its end. Text is `server.text.choice_text`'s; JSON is the routes'.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.errors import (
    DeadlineError,
    DeepseekServeError,
    EngineUnavailableError,
    GenerationError,
    QueueTimeoutError,
)
from engine.protocol import GenerateRequest, SchedulingParams, SequenceOutput
from server.observe.metrics import RequestTimer
from server.text.choice_text import ChoiceText, Delta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from engine.protocol import TokenLogprobs
    from server.admission import Ticket
    from server.output_stream import OutputStream
    from server.protocol import GenerationRequest
    from server.state import ServerState


class Generation:
    """The prompts of one API request, `num_sequences` choices for each.

    A choice's number is prompt number * num_sequences + index.
    """

    def __init__(
        self,
        server: ServerState,
        body: GenerationRequest,
        prompts: list[list[int]],
        scheduling: SchedulingParams,
        ticket: Ticket,
        key_name: str,
        grammar: str | None = None,
        kept_special_tokens: frozenset[int] = frozenset(),
        is_enough: Callable[[Delta], bool] = lambda _: False,
    ) -> None:
        """Check the request against the engine's limits.

        `kept_special_tokens` stay in the text. `is_enough` says whether a choice ends with a delta; it gets each once.

        Raises:
            RequestError: the engine can never compute it.
            EngineUnavailableError: the engine takes no requests now.
        """
        info = server.client.require_info()
        self._sampling = server.sampling(body, info.max_seq_len - max(map(len, prompts)))
        self._sampling = replace(self._sampling, grammar=grammar)
        for prompt in prompts:
            info.check(prompt, self._sampling)
        self.prompts, self._n = prompts, body.num_sequences
        self.num_output_tokens = self.num_cached_tokens = 0
        self._client, self._metrics, self._scheduling, self._ticket = server.client, server.metrics, scheduling, ticket
        self._key_name, self._is_enough = key_name, is_enough
        self._started: set[str] = set()  # requests that have had their first step
        ticket.resize(self.num_prompt_tokens * info.num_computed(self._n))
        detokenizer, skip = server.tokenizer.detokenizer, body.skip_special_tokens
        self._texts = [
            ChoiceText(
                i,
                detokenizer(skip_special_tokens=skip, keep=kept_special_tokens, after=prompts[i // self._n]),
                self._sampling.stop,
            )
            for i in range(self.num_choices)
        ]

    @property
    def num_choices(self) -> int:
        """Choices of all prompts."""
        return len(self.prompts) * self._n

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts; each prompt counts once, whatever n is."""
        return sum(map(len, self.prompts))

    async def join(self) -> list[Delta]:
        """Run to the end; return each choice in one piece. Raises as `deltas` does."""
        choices = [Delta(i, is_first=True) for i in range(self.num_choices)]
        async for delta in self.deltas():
            choices[delta.choice].extend(delta)
        return choices

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Submit the requests and yield deltas. Closing the generator, or cancelling its consumer, aborts the rest.

        Raises:
            GenerationError, EngineUnavailableError, DeadlineError, QueueTimeoutError: the request ended early.
        """
        requests = [
            GenerateRequest(uuid.uuid4().hex, prompt, self._sampling, self._n, self._scheduling)
            for prompt in self.prompts
        ]
        first_choices = {request.request_id: i * self._n for i, request in enumerate(requests)}
        timer = RequestTimer(
            self._metrics,
            self._scheduling.arrival_time,
            self.num_prompt_tokens,
            self._key_name,
            is_background=self._scheduling.background,
        )
        num_running, left = self.num_choices, "abort"
        try:
            with self._client.submit(requests) as stream:
                outputs = stream if self._sampling.prompt_logprobs is None else self._with_prompt_logprobs(stream)
                async for output in outputs:
                    choice = first_choices[output.request_id] + output.index
                    timer.tokens(choice, len(output.token_ids), output.queue_time)
                    self._count(output)
                    delta = self._texts[choice].push(output)
                    reason = output.finish_reason
                    if reason is None and delta is not None and self._is_enough(delta):
                        delta.finish_reason = "stop"
                    if reason is None and delta is not None and delta.finish_reason is not None:
                        reason = delta.finish_reason  # of which the engine knows nothing
                        stream.abort(output.request_id, output.index)
                    if reason is not None:
                        num_running -= 1
                        self._metrics.count_finished(reason)
                    self._check_end(output)
                    if delta is not None:
                        yield delta
        except EngineUnavailableError:
            left = "error"
            raise
        except TimeoutError:  # the engine hangs
            left = "timeout"
            raise self._too_late(has_started=bool(self._started)) from None
        finally:
            for _ in range(num_running):
                self._metrics.count_finished(left)
            timer.end()

    async def _with_prompt_logprobs(self, stream: OutputStream) -> AsyncIterator[SequenceOutput]:
        """Yield outputs; the engine reports a prompt once, with index 0, and the others wait for it and get it too."""
        reports: dict[str, list[TokenLogprobs]] = {}
        held: dict[str, list[SequenceOutput]] = {request_id: [] for request_id in stream.request_ids}
        async for output in stream:
            request_id = output.request_id
            if output.index == 0:
                yield output
                if output.prompt_logprobs is not None:
                    reports[request_id] = output.prompt_logprobs
            else:
                held[request_id].append(output)
            if request_id in reports:
                ready, held[request_id] = held[request_id], []
                for other in ready:
                    is_first = other.queue_time is not None
                    yield replace(other, prompt_logprobs=reports[request_id]) if is_first else other

    def _count(self, output: SequenceOutput) -> None:
        if output.queue_time is not None:
            self._started.add(output.request_id)
            self._ticket.start()
        self.num_output_tokens += len(output.token_ids)
        if output.index == 0:  # the n choices share one prompt
            self.num_cached_tokens += output.num_cached_tokens

    def _check_end(self, output: SequenceOutput) -> None:
        """Raise if the sequence did not end as it should."""
        if output.finish_reason == "timeout":
            raise self._too_late(has_started=output.request_id in self._started)
        if output.finish_reason == "error":
            reason = "it could not be taken in, or the model's output is not a number"
            if self._sampling.grammar is not None:
                reason = "the form that it asks for could not be followed further, or " + reason
            raise GenerationError(f"The engine ended this request: {reason}.")

    def _too_late(self, *, has_started: bool) -> DeepseekServeError:
        """Tell the two time limits apart: the request's own, and the server's for waiting."""
        now = time.monotonic()
        seconds = now - self._scheduling.arrival_time
        if not has_started and (self._scheduling.deadline is None or now < self._scheduling.deadline):
            message = f"The server is busy: the request waited {seconds:.1f} s and was not started."
            self._metrics.count_refused("queue_timeout")
            return QueueTimeoutError(message, self._ticket.retry_after())
        return DeadlineError(f"The request was ended unfinished after {seconds:.1f} s, its time.")

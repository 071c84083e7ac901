"""One API request's generation: prompts become engine requests, the engine's outputs become deltas of text.

Owns the request's counts and its end. Text is `server.text.choice_text`'s; JSON is the routes'.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.errors import EngineUnavailableError
from engine.protocol import GenerateRequest, PoolingParams, PoolRequest, SchedulingParams, SequenceOutput
from server.guard.checked import CheckedDeltas
from server.http.request_record import current, engine_id
from server.submission import Submission
from server.text.choice_text import ChoiceText, Delta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from engine.protocol import TokenLogprobs
    from server.admission import Ticket
    from server.inputs import ModelInput
    from server.output_stream import OutputStream
    from server.protocol import GenerationRequest
    from server.state import ServerState


_VALUE = PoolingParams(task="value")


class Generation(Submission):
    """The prompts of one API request, `num_sequences` choices for each.

    A choice's number is prompt number * num_sequences + index.

    Attributes:
        has_values: whether the model can say how sound a choice is.
    """

    def __init__(
        self,
        server: ServerState,
        body: GenerationRequest,
        prompts: list[ModelInput],
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
        super().__init__(server, prompts, scheduling, ticket, key_name)
        info = server.client.require_info()
        self._sampling = server.sampling(body, info.max_seq_len - max(map(len, prompts)))
        self._sampling = replace(self._sampling, grammar=grammar)
        for prompt in prompts:
            info.check(prompt.token_ids, self._sampling, prompt.modalities)
        self._n, self._is_enough = body.num_sequences, is_enough
        self._guard = server.guard
        self._ids = [engine_id() for _ in prompts]
        self._running: set[int] = set()  # choices that have not ended
        self._stream: OutputStream | None = None
        self.has_values = "value" in info.tasks
        self.num_output_tokens = 0
        ticket.resize(self.num_prompt_tokens * info.num_computed(self._n))
        detokenizer, skip = server.tokenizer.detokenizer, body.skip_special_tokens
        self._texts = [
            ChoiceText(
                i,
                detokenizer(skip_special_tokens=skip, keep=kept_special_tokens, after=self.prompts[i // self._n]),
                self._sampling.stop,
            )
            for i in range(self.num_choices)
        ]

    @property
    def num_choices(self) -> int:
        """Choices of all prompts."""
        return len(self.prompts) * self._n

    async def join(self) -> list[Delta]:
        """Run to the end; return each choice in one piece. Raises as `deltas` does."""
        choices = [Delta(i, is_first=True) for i in range(self.num_choices)]
        async for delta in self.deltas():
            choices[delta.choice].extend(delta)
        return choices

    def deltas(self) -> AsyncGenerator[Delta, None]:
        """Submit the requests and yield deltas. Closing the generator, or cancelling its consumer, aborts the rest.

        Raises:
            GenerationError, EngineUnavailableError, DeadlineError, QueueTimeoutError: the request ended early.
        """
        if self._guard is None:
            return self._deltas()
        return CheckedDeltas(self._guard, self.num_choices, self._scheduling, self._cut).of(self._deltas())

    async def _deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield deltas as they come."""
        requests = [
            GenerateRequest(name, prompt.token_ids, self._sampling, self._n, self._scheduling, prompt.modalities)
            for name, prompt in zip(self._ids, self.inputs, strict=True)
        ]
        first_choices = {name: i * self._n for i, name in enumerate(self._ids)}
        timer, reason_of_rest = self._timer(), "abort"
        self._running = set(range(self.num_choices))
        if (record := current()) is not None and record.trace is not None:
            record.trace.describe(self._sampling, self.num_choices)
        try:
            with self._client.submit(requests) as stream:
                self._stream = stream
                outputs = stream if self._sampling.prompt_logprobs is None else self._with_prompt_logprobs(stream)
                async for output in outputs:
                    choice = first_choices[output.request_id] + output.index
                    timer.tokens(choice, len(output.token_ids), output.queue_time)
                    delta = self._advance(choice, output, stream)
                    self._check_end(output)
                    if delta is not None:
                        yield delta
        except EngineUnavailableError:
            reason_of_rest = "error"
            raise
        except TimeoutError:  # the engine hangs
            reason_of_rest = "timeout"
            raise self._too_late(has_started=bool(self._started)) from None
        finally:
            for choice in list(self._running):
                self._count_end(choice, reason_of_rest)
            timer.end()

    def _advance(self, choice: int, output: SequenceOutput, stream: OutputStream) -> Delta | None:
        """Take in what a choice has grown by; what that adds to its text. Its text may end before the engine knows."""
        self._count(output)
        self.num_output_tokens += len(output.token_ids)
        delta, reason = self._texts[choice].push(output), output.finish_reason
        if reason is None and delta is not None and self._is_enough(delta):
            delta.finish_reason = "stop"
        if reason is None and delta is not None and delta.finish_reason is not None:
            reason = "stop"
            stream.abort(output.request_id, output.index)
        if reason is not None:
            self._count_end(choice, reason)
        return delta

    def _count_end(self, choice: int, reason: str) -> None:
        self._running.remove(choice)
        self._metrics.requests.count_finished(reason)

    def _cut(self, choice: int) -> None:
        """End a choice that the guard has flagged; the engine may have ended it before."""
        if choice in self._running and self._stream is not None:
            self._stream.abort(self._ids[choice // self._n], choice % self._n)
            self._count_end(choice, "content_filter")
        elif (record := current()) is not None:
            record.finish_reasons.add("content_filter")

    async def values(self, choices: list[Delta]) -> list[float]:
        """Have the model say how sound each choice is, behind its prompt; their tokens are in the prefix cache.

        Raises:
            GenerationError, EngineUnavailableError, DeadlineError: as `deltas`.
        """
        scheduling = replace(self._scheduling, start_deadline=None)  # the request has started
        whole = [self.inputs[choice.choice // self._n].with_output(choice.token_ids) for choice in choices]
        requests = [PoolRequest(engine_id(), w.token_ids, _VALUE, scheduling, w.modalities) for w in whole]
        values: dict[str, float] = {}
        try:
            with self._client.submit(requests) as stream:
                async for output in stream:
                    self._check_end(output)
                    if output.pooled is not None:
                        (values[output.request_id],) = array("f", output.pooled)
        except TimeoutError:  # the engine hangs
            raise self._too_late(has_started=True) from None
        return [values[request.request_id] for request in requests]

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

    def _possible_faults(self) -> str:
        faults = super()._possible_faults()
        if self._sampling.grammar is None:
            return faults
        return f"the form that it asks for could not be followed further, or {faults}"

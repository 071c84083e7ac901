"""The way of every request that asks for values of prompts, not for text: admit, encode, submit, collect.

Embeddings, classes and scores are made of these values by the routes, which also say what their JSON looks like.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from engine.errors import EngineUnavailableError, RequestError
from engine.protocol import PoolRequest
from server.http.client_limits import reserve_tokens
from server.http.request_record import engine_id
from server.http.streaming import run_until_disconnect
from server.pipeline import yielding
from server.submission import Submission, scheduling_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Request

    from engine.protocol import FinishReason, PoolingParams, SchedulingParams
    from server.admission import Ticket
    from server.heads.texts import Texts
    from server.inputs import ModelInput
    from server.observe.request_timer import RequestTimer
    from server.state import ServerState


@dataclass(frozen=True)
class Pooled:
    """The values of several prompts.

    Attributes:
        vectors: of each prompt, in the prompts' order: an embedding, or the logits of labels, as fp32.
        num_prompt_tokens: of all prompts, special tokens included.
    """

    vectors: list[array[float]]
    num_prompt_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's `usage` object."""
        return {"prompt_tokens": self.num_prompt_tokens, "total_tokens": self.num_prompt_tokens}


async def pool(request: Request, texts: Texts[Any], pooling: PoolingParams) -> Pooled | None:
    """Compute values of texts, of a model that has them (`checked_info`); None if the client has left before.

    Raises:
        DeepseekServeError: the request is refused, or ends early. A RequestError has the API's name of the field.
    """
    server, body = texts.server, texts.body
    scheduling = scheduling_of(request, server, body)
    try:
        texts.check()
        admission = server.background if scheduling.background else server.admission
        reserve_tokens(request.scope, sum(texts.sizes))
        share = _share(server, len(texts.sizes))
        with admission.admit(share, sum(texts.sizes) * share // len(texts.sizes), scheduling.tenant) as ticket:
            key_name = request.scope["caller"].key_name
            return await run_until_disconnect(request.receive, _computed(texts, pooling, scheduling, ticket, key_name))
    except RequestError as error:
        error.param = body.param_names.get(error.param, error.param)
        raise


async def _computed(
    texts: Texts[Any], pooling: PoolingParams, scheduling: SchedulingParams, ticket: Ticket, key_name: str
) -> Pooled:
    prompts = await texts.encode()
    info = texts.server.client.require_info()
    async for prompt in yielding(prompts):
        info.check_pooling(prompt.token_ids, pooling, prompt.modalities)
    return await Pooling(texts.server, prompts, pooling, scheduling, ticket, key_name).run()


def _share(server: ServerState, num_prompts: int) -> int:
    """Return how many prompts of a request wait or run in the engine at a time: enough to fill two batches.

    So a request for thousands of texts takes no more of the queue than others do, and none has to wait for it all.
    """
    return min(num_prompts, 2 * server.client.require_info().max_batch_size)


class Pooling(Submission):
    """The prompts of one API request, of each of which values are computed."""

    def __init__(
        self,
        server: ServerState,
        prompts: list[ModelInput],
        pooling: PoolingParams,
        scheduling: SchedulingParams,
        ticket: Ticket,
        key_name: str,
    ) -> None:
        super().__init__(server, prompts, scheduling, ticket, key_name)
        self._pooling = pooling
        self._task = "classify" if pooling.task == "classify" else "embed"
        self._share, self._num_unstarted = _share(server, len(prompts)), len(prompts)
        self._vectors = [array("f") for _ in prompts]
        ticket.resize(self.num_prompt_tokens * self._share // len(prompts))

    async def run(self) -> Pooled:
        """Submit the requests and collect what comes; cancelling this aborts what runs.

        Raises:
            GenerationError, EngineUnavailableError, DeadlineError, QueueTimeoutError: the request ended early.
        """
        timer, numbers = self._timer(), iter(range(len(self.prompts)))
        workers = [asyncio.create_task(self._work(numbers, timer)) for _ in range(self._share)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            timer.end()
        return Pooled(self._vectors, self.num_prompt_tokens)

    async def _work(self, numbers: Iterator[int], timer: RequestTimer) -> None:
        """Have one prompt after another computed, until none is left."""
        for number in numbers:
            reason: FinishReason = "abort"
            ids, modalities = self.inputs[number].token_ids, self.inputs[number].modalities
            scheduling = self._scheduling_of(number)
            request = PoolRequest(engine_id(), ids, self._pooling, scheduling, modalities)
            try:
                with self._client.submit([request]) as stream:
                    async for output in stream:
                        timer.tokens(number, 0, output.queue_time)
                        self._count(output)
                        if output.finish_reason is not None:
                            reason = output.finish_reason
                        self._check_end(output)
                        if output.pooled is not None:
                            self._vectors[number].frombytes(output.pooled)
            except EngineUnavailableError:
                reason = "error"
                raise
            except TimeoutError:  # the engine hangs
                reason = "timeout"
                raise self._too_late(has_started=bool(self._started)) from None
            finally:
                self._metrics.requests.count_finished(reason)

    def _scheduling_of(self, number: int) -> SchedulingParams:
        """Return what a prompt is scheduled by: it waits from now on, and once others have started it may wait."""
        if number < self._share:
            return self._scheduling
        return replace(self._scheduling, arrival_time=time.monotonic(), start_deadline=None)

    def _start(self) -> None:
        self._num_unstarted -= 1
        if self._num_unstarted < self._share:
            self._ticket.start()
        else:
            self._ticket.pass_on()

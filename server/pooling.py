"""The way of every request that asks for values of prompts, not for text: admit, encode, submit, collect.

Embeddings, classes and scores are made of these values by the routes, which also say what their JSON looks like.
"""

from __future__ import annotations

import math
import uuid
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import EngineUnavailableError, RequestError
from engine.protocol import PoolRequest
from server.http.client_limits import reserve_tokens
from server.http.streaming import run_until_disconnect
from server.submission import Submission, scheduling_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import Request

    from engine.protocol import LabelActivation, PoolingParams, SchedulingParams
    from server.admission import Ticket
    from server.heads.texts import Texts
    from server.state import ServerState


@dataclass(frozen=True)
class Pooled:
    """The values of several prompts.

    Attributes:
        vectors: of each prompt, in the prompts' order: an embedding, the logits of labels, or one value, as fp32.
        num_prompt_tokens: of all prompts, special tokens included; num_cached_tokens those from the prefix cache.
    """

    vectors: list[array[float]]
    num_prompt_tokens: int
    num_cached_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's `usage` object."""
        return {"prompt_tokens": self.num_prompt_tokens, "total_tokens": self.num_prompt_tokens}


async def pool(request: Request, texts: Texts[Any], pooling: PoolingParams) -> Pooled | None:
    """Compute values of texts, all of them side by side; None if the client has left before.

    Raises:
        DeepseekServeError: the request is refused, or ends early. A RequestError has the API's name of the field.
    """
    server, body = texts.server, texts.body
    scheduling = scheduling_of(request, server, body)
    try:
        server.check_model(body.model)
        texts.check(pooling)
        admission = server.background if scheduling.background else server.admission
        reserve_tokens(request.scope, sum(texts.sizes))
        with admission.admit(len(texts.sizes), sum(texts.sizes), scheduling.tenant) as ticket:
            key_name = request.scope["caller"].key_name
            return await run_until_disconnect(request.receive, _computed(texts, pooling, scheduling, ticket, key_name))
    except RequestError as error:
        error.param = body.param_names.get(error.param, error.param)
        raise


async def _computed(
    texts: Texts[Any], pooling: PoolingParams, scheduling: SchedulingParams, ticket: Ticket, key_name: str
) -> Pooled:
    prompts = await texts.encode()
    return await Pooling(texts.server, prompts, pooling, scheduling, ticket, key_name).run()


class Pooling(Submission):
    """The prompts of one API request, of each of which values are computed."""

    def __init__(
        self,
        server: ServerState,
        prompts: list[list[int]],
        pooling: PoolingParams,
        scheduling: SchedulingParams,
        ticket: Ticket,
        key_name: str,
    ) -> None:
        """Check the request against the engine's limits.

        Raises:
            RequestError: the engine can never compute it.
            EngineUnavailableError: the engine takes no requests now.
        """
        super().__init__(server, prompts, scheduling, ticket, key_name)
        info = server.client.require_info()
        for prompt in prompts:
            info.check_pooling(prompt, pooling)
        self._pooling = pooling
        ticket.resize(self.num_prompt_tokens)

    async def run(self) -> Pooled:
        """Submit the requests and collect what comes; cancelling this aborts what runs.

        Raises:
            GenerationError, EngineUnavailableError, DeadlineError, QueueTimeoutError: the request ended early.
        """
        requests = [PoolRequest(uuid.uuid4().hex, prompt, self._pooling, self._scheduling) for prompt in self.prompts]
        numbers = {request.request_id: number for number, request in enumerate(requests)}
        vectors = [array("f") for _ in requests]
        timer, num_running, left = self._timer(), len(requests), "abort"
        try:
            with self._client.submit(requests) as stream:
                async for output in stream:
                    number = numbers[output.request_id]
                    timer.tokens(number, 0, output.queue_time)
                    self._count(output)
                    if output.finish_reason is not None:
                        num_running -= 1
                        self._metrics.count_finished(output.finish_reason)
                    self._check_end(output)
                    if output.pooled is not None:
                        vectors[number].frombytes(output.pooled)
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
        return Pooled(vectors, self.num_prompt_tokens, self.num_cached_tokens)


def scores_of(logits: Sequence[float], activation: LabelActivation) -> list[float]:
    """Return what a model says of its labels: probabilities that sum to 1, one for each label, or the logits."""
    if activation == "none":
        return list(logits)
    if activation == "sigmoid":
        return [math.exp(min(0.0, x)) / (1 + math.exp(-abs(x))) for x in logits]
    largest = max(logits)
    powers = [math.exp(x - largest) for x in logits]
    total = sum(powers)
    return [power / total for power in powers]

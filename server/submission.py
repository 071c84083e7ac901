"""What all requests to the engine have in common: their start, and how their ends are told and counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.errors import DeadlineError, DeepseekServeError, GenerationError, QueueTimeoutError
from engine.protocol import SchedulingParams
from server.observe.request_timer import RequestTimer

if TYPE_CHECKING:
    from fastapi import Request

    from engine.protocol import SequenceOutput
    from server.admission import Ticket
    from server.inputs import ModelInput
    from server.observe.request_metrics import ApiTask
    from server.protocol.prompts import PromptFields
    from server.state import ServerState


class Submission:
    """The engine's part of one API request: what it computes is its subclasses' concern."""

    _task: ApiTask = "generate"

    def __init__(
        self,
        server: ServerState,
        inputs: list[ModelInput],
        scheduling: SchedulingParams,
        ticket: Ticket,
        key_name: str,
    ) -> None:
        self.inputs, self.prompts = inputs, [prompt.token_ids for prompt in inputs]
        self.num_cached_tokens = 0
        self._client, self._metrics, self._scheduling, self._ticket = server.client, server.metrics, scheduling, ticket
        self._key_name = key_name
        self._started: set[str] = set()  # requests that have had their first step

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts; each prompt counts once, whatever n is."""
        return sum(map(len, self.prompts))

    def _timer(self) -> RequestTimer:
        return RequestTimer(
            self._metrics,
            self._scheduling.arrival_time,
            self.num_prompt_tokens,
            self._key_name,
            is_background=self._scheduling.background,
            task=self._task,
        )

    def _count(self, output: SequenceOutput) -> None:
        if output.queue_time is not None:
            self._started.add(output.request_id)
            self._start()
        if output.index == 0:  # the n choices share one prompt
            self.num_cached_tokens += output.num_cached_tokens

    def _start(self) -> None:
        """Called when a prompt has had its first step."""
        self._ticket.start()

    def _check_end(self, output: SequenceOutput) -> None:
        """Raise if the sequence did not end as it should."""
        if output.finish_reason == "timeout":
            raise self._too_late(has_started=output.request_id in self._started)
        if output.finish_reason == "error":
            raise GenerationError(f"The engine ended this request: {self._possible_faults()}.")

    def _possible_faults(self) -> str:
        return "it could not be taken in, or the model's output is not a number"

    def _too_late(self, *, has_started: bool) -> DeepseekServeError:
        """Tell the two time limits apart: the request's own, and the server's for waiting."""
        now = time.monotonic()
        seconds = now - self._scheduling.arrival_time
        if not has_started and (self._scheduling.deadline is None or now < self._scheduling.deadline):
            message = f"The server is busy: the request waited {seconds:.1f} s and was not started."
            self._metrics.requests.count_refused("queue_timeout")
            return QueueTimeoutError(message, self._ticket.retry_after())
        return DeadlineError(f"The request was ended unfinished after {seconds:.1f} s, its time.")


def scheduling_of(request: Request, server: ServerState, body: PromptFields) -> SchedulingParams:
    """Return what the batcher schedules a request by, if it arrives now."""
    arrival_time, caller, config = time.monotonic(), request.scope["caller"], server.config
    is_background = request.scope.get("is_background", False)  # a batch's line, for which waiting is no failure
    limits = [body.timeout, None if is_background else config.request_timeout]
    seconds = min((limit for limit in limits if limit is not None), default=None)
    queue_timeout = None if is_background else config.queue_timeout
    return SchedulingParams(
        arrival_time,
        body.priority,
        caller.tenant,
        caller.weight,
        deadline=None if seconds is None else arrival_time + seconds,
        start_deadline=None if queue_timeout is None else arrival_time + queue_timeout,
        background=is_background,
        cache_salt=body.salt,
    )

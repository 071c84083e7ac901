"""The API's line to the engine replicas: one Ray call a request, and one question to all of them twice a second.

Owns what is known of the replicas. Which replica computes a request is the router's (deploy.ray.router).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextvars import Context
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from engine.engine_info import EngineInfo
from engine.errors import BrokenOffError
from engine.protocol import AbortRequest, EngineStats, GenerateRequest, PoolRequest, SequenceOutput
from server.engine_client import EngineClient, EngineState

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from engine.protocol import ToEngine
    from server.output_stream import OutputStream

logger = logging.getLogger(__name__)
Request = TypeVar("Request", bound=GenerateRequest | PoolRequest)

_PERIOD = 0.5  # seconds between two questions; a replica that dies with a request is noticed at once
_TIMEOUT = 5.0  # seconds for an answer; then what was known stays
_LOST = "The engine stopped while it was computing this request. Please try again."

decode_outputs = msgspec.msgpack.Decoder(list[SequenceOutput]).decode


class Report(NamedTuple):
    """What a replica says of itself."""

    replica: str
    info: EngineInfo
    stats: EngineStats


class _Call(NamedTuple):
    """A request that runs."""

    task: asyncio.Task[None]
    num_choices: int


class RayEngineClient(EngineClient):
    """Many engines as one: ready while any replica is, with the sum of their stats."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        super().__init__()
        self._replicas = replicas
        # By gRPC, which costs half of what Ray's object store does for each message.
        self._computing = replicas.options(method_name="compute", stream=True, _by_reference=False)
        self._calls: dict[str, _Call] = {}
        self._last: dict[str, EngineStats] = {}  # of each replica that is there
        self._past = EngineStats(0, 0, 0, 0)  # counters of those that are gone, so that no counter ever falls
        self._lost = asyncio.Event()

    async def run(self) -> None:
        try:
            while True:
                self._lost.clear()
                with contextlib.suppress(TimeoutError):
                    self._take(await self._ask())
                with contextlib.suppress(TimeoutError):  # Ray tells a caller nothing of replicas that come
                    await asyncio.wait_for(self._lost.wait(), _PERIOD)
        finally:
            self.info, self.state = None, EngineState.STOPPED
            self.fail_all("The server is shutting down.")

    async def _ask(self) -> list[Report]:
        """The reports of all replicas that are alive.

        Raises:
            TimeoutError: one of them does not answer.
        """
        try:
            response = self._replicas.broadcast("report")
            answers = await response.results_async(timeout_s=_TIMEOUT, return_exceptions=True)
        except RayServeException:  # there is none
            return []
        return [answer for answer in answers if isinstance(answer, Report)]

    def _take(self, reports: list[Report]) -> None:
        stats = {report.replica: report.stats for report in reports}
        for replica in self._last.keys() - stats.keys():
            gone = self._last[replica]
            self._past = _total(self._past, msgspec.structs.replace(gone, **dict.fromkeys(_GAUGES, 0)))
        self._last = stats
        if reports:
            if self.info is None:
                logger.info("%d engine replicas take requests", len(reports))
                self.startup.finish()
            self.info, self.state = min((r.info for r in reports), key=lambda info: info.max_seq_len), EngineState.READY
            self.stats = _total(self._past, *stats.values())
        elif self.info is not None:
            logger.error("no engine replica is left")
            self.info, self.state = None, EngineState.RESTARTING
            self.stats = msgspec.structs.replace(self._past, num_blocks=1)
            self.fail_all(_LOST)

    def _send(self, message: ToEngine) -> None:
        match message:
            case GenerateRequest() | PoolRequest():
                # A context of its own: in that of the HTTP request, Ray would take its prompts for one and the same.
                task = asyncio.get_running_loop().create_task(self._compute(message), context=Context())
                self._calls[message.request_id] = _Call(task, message.n)
            case AbortRequest(request_id, int(index)) if self._calls[request_id].num_choices > 1:
                # Only the replica that has the request acts on it; `_forget` ends whole calls.
                asyncio.get_running_loop().create_task(self._abort(request_id, index))

    def _forget(self, stream: OutputStream) -> None:
        super()._forget(stream)
        for request_id in stream.request_ids:
            self._calls.pop(request_id).task.cancel()

    async def _compute(self, request: GenerateRequest | PoolRequest) -> None:
        """Carry one request's outputs to its stream; a cancelled call reaches the replica, which ends its sequences."""
        response = self._computing.remote(shift_times(request, -time.monotonic()))
        num_live = request.n
        try:
            async for message in response:
                for output in decode_outputs(message):
                    num_live -= output.finish_reason is not None
                    if (stream := self._streams.get(request.request_id)) is not None:
                        stream.push(output)
        except asyncio.CancelledError:
            if num_live:
                response.cancel()
            raise
        except (RayError, RayServeException) as error:
            logger.warning("request %s has lost its replica: %s", request.request_id, type(error).__name__)
            self._lost.set()
            if (stream := self._streams.get(request.request_id)) is not None:
                stream.fail(BrokenOffError(_LOST))

    async def _abort(self, request_id: str, index: int) -> None:
        with contextlib.suppress(RayServeException):  # no replica is there
            await self._replicas.broadcast("abort", request_id, index).results_async(return_exceptions=True)


_GAUGES = ("num_running", "num_waiting", "num_used_blocks", "num_blocks")


def _total(*stats: EngineStats) -> EngineStats:
    return EngineStats(*map(sum, zip(*map(msgspec.structs.astuple, stats), strict=True)))


def shift_times(request: Request, seconds: float) -> Request:
    """Move a request's times. On the way they count from the moment of sending: two machines share no clock."""
    scheduling = request.scheduling
    times = {name: getattr(scheduling, name) for name in ("arrival_time", "deadline", "start_deadline")}
    moved = {name: at + seconds for name, at in times.items() if at is not None}
    return msgspec.structs.replace(request, scheduling=msgspec.structs.replace(scheduling, **moved))

"""One engine replica on Ray Serve: the engine's process, behind the calls that deploy.ray.client makes.

If the engine dies, the replica's process ends with it, and Ray starts another one.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import ray
from ray import serve

from deploy.ray.client import Report, shift_times
from engine.errors import EngineUnavailableError
from engine.loading.resolve import resolve_model
from engine.protocol import GenerateRequest, encode
from server.engine_process import EngineProcess
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.config import EngineConfig
    from engine.engine_info import EngineInfo
    from engine.protocol import PoolRequest, Vocabulary
    from server.output_stream import OutputStream


class _Engine(EngineProcess):
    """The engine's process, started once: it is Ray that brings back a dead one."""

    def __init__(self, config: EngineConfig, log_level: str) -> None:
        super().__init__(config, log_level)
        self.is_ready = asyncio.Event()

    async def run(self) -> None:
        try:
            raise EngineUnavailableError(f"the engine ended with status {await self._run_once()}")
        finally:
            self._context.destroy(linger=0)

    def _ready(self, info: EngineInfo) -> None:
        super()._ready(info)
        self.is_ready.set()


class EngineReplica:
    """One engine. If it dies, this process ends with it, and Ray starts another."""

    async def __init__(self, config: EngineConfig, log_level: str) -> None:  # type: ignore[misc]  # Ray awaits it
        self._name = serve.get_replica_context().replica_id.unique_id
        self._max_batch_size, self._model = config.max_batch_size, config.model
        self._streams: dict[str, OutputStream] = {}
        cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
        self._engine = _Engine(config.model_copy(update={"threads": config.threads or max(1, cpus)}), log_level)
        self._running = running = asyncio.create_task(self._engine.run())
        ready = asyncio.create_task(self._engine.is_ready.wait())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            ready.cancel()
            await running  # raises what is wrong with the settings or the model
        running.add_done_callback(lambda _: os._exit(1))  # at once: no request may be sent here any more

    async def compute(self, request: GenerateRequest | PoolRequest) -> AsyncIterator[bytes]:
        """Yield a request's outputs; when Ray cancels the call, its sequences are aborted."""
        grammar = request.sampling.grammar if isinstance(request, GenerateRequest) else None
        if grammar is not None and self._engine.vocabulary is None:
            self._engine.vocabulary = await asyncio.to_thread(self._read_vocabulary)
        with self._engine.submit([shift_times(request, time.monotonic())]) as stream:
            self._streams[request.request_id] = stream
            try:
                async for output in stream:
                    yield encode([output, *iter(stream.take, None)])  # fewer messages where Ray is the slower
            finally:
                del self._streams[request.request_id]

    def _read_vocabulary(self) -> Vocabulary:
        """What grammars are matched on; the API, which has checked them, does not send it to each replica."""
        return Tokenizer.load(resolve_model(self._model)).vocabulary()

    async def abort(self, request_id: str, index: int) -> None:
        """End one of a request's sequences, if the request is here."""
        if (stream := self._streams.get(request_id)) is not None:
            stream.abort(request_id, index)

    async def report(self) -> Report:
        """What the API asks every replica."""
        info, stats = self._engine.require_info(), self._engine.stats
        assert stats is not None, "an engine that is ready has stats"
        return Report(self._name, info, stats)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray for deploy.ray.scaling."""
        stats = (await self.report()).stats
        return {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "max_batch_size": self._max_batch_size,
        }

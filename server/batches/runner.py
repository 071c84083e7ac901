"""Runs batches beneath live traffic: claims them from the database, a few at a time, and keeps their leases.

The engine computes lines only with what live requests leave (docs/batches.md). Nothing happens before the engine is
ready, nor before there is a database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING

from engine.errors import StorageError
from server.batches.metrics import BatchMetrics
from server.batches.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Row
    from starlette.types import ASGIApp

    from server.batches.run import BatchRun
    from server.state import ServerState

logger = logging.getLogger(__name__)

_MAX_RUNS = 4  # batches at a time
_POLL = 5.0  # seconds between looks for batches that another server left
_SWEEP = 600.0  # seconds between removals of what has expired
_LONGEST_PAUSE = 60.0  # seconds between looks that fail
_FIRST_REST, _LONGEST_REST = 30.0, 3600.0  # seconds until a batch is tried again whose run failed by a fault of ours
_READY_POLL = 0.1  # seconds between looks whether the engine is there again
_BYTES_PER_NUMBER = 24  # of an embedding, as fp32 and as text


class BatchRunner:
    """Use: `run` as a task; `wake` when a batch was made or cancelled; `stop` to leave all to be gone on with later."""

    def __init__(self, server: ServerState, make_app: Callable[[], ASGIApp]) -> None:
        """`make_app` makes what lines are asked of; it is called when there is one."""
        self._server, self._make_app = server, make_app
        self.storage = server.storage
        self.model_names = server.model_names
        self.max_lines = server.config.max_batch_lines
        self.max_line_bytes = int(server.config.max_body_size * (1 << 20))
        self.slots = Slots(self._max_in_flight)
        self.suspects = asyncio.Lock()  # lines during which the engine died run one at a time
        self.metrics = BatchMetrics(server.metrics.families, lambda: self.slots.num_taken)
        self._runs: dict[BatchRun, asyncio.Task[None]] = {}
        self._woken, self._is_stopped = asyncio.Event(), False
        self._broken: dict[str, tuple[float, float]] = {}  # batch -> (when it is tried again, its pause)
        self.problem: str | None = None  # why no batches are run, where something is at fault
        self._swept: float | None = None

    @cached_property
    def app(self) -> ASGIApp:
        """What lines are asked of."""
        return self._make_app()

    def wake(self) -> None:
        """Look for batches, and at those that run, now."""
        self._woken.set()
        for run in self._runs:
            run.look.set()

    def stop(self) -> None:
        """End all runs at once; what their lines brought is committed, and the next server goes on."""
        if not self._is_stopped:  # a second cancellation would break off what the first one waits for
            self._is_stopped = True
            self._woken.set()
            for task in self._runs.values():
                task.cancel()

    async def run(self, on_imported: Callable[[], object] = lambda: None) -> None:
        """Run batches until `stop`, or until cancelled; both wait for results that are being committed.

        `on_imported` is called once, when the last slow import is done.
        """
        await self._server.client.started.wait()
        pause = _POLL
        try:
            while not self._is_stopped:
                try:
                    await asyncio.to_thread(self.storage.prepare)  # the first file or response is not to wait for it
                    on_imported()
                    on_imported = _nothing
                    if self.storage.database.may_have_data:
                        await self._look()
                    self.problem, pause = None, _POLL
                except Exception as error:
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    self.problem = f"no batches are run: {type(error).__name__}"
                    self.metrics.count_fault()
                    logger.exception("no batches are run; they are tried again in %g s", pause)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
                self._woken.clear()
        finally:
            self.stop()
            while self._runs:
                with contextlib.suppress(asyncio.CancelledError):  # the database is closed after this
                    await asyncio.wait(self._runs.values())

    def describe(self) -> dict[str, object]:
        """Return what runs, for whoever looks into the server."""
        return {
            "running": len(self._runs),
            "lines_in_flight": self.slots.num_taken,
            "resting_after_a_fault": len(self._resting()),
            "problem": self.problem,
        }

    async def until_ready(self) -> None:
        """Wait until requests are taken."""
        while not self._server.takes_requests:
            await asyncio.sleep(_READY_POLL)

    def size_of(self, endpoint: str, line: bytes) -> int:
        """Return how many bytes a line may have in memory: its own, and those of the embeddings that it asks for."""
        info = self._server.client.info
        if endpoint != "/v1/embeddings" or info is None:
            return len(line)
        num_texts = min(line.count(b",") + 1, self._server.config.max_inputs)
        return len(line) + num_texts * info.hidden_size * _BYTES_PER_NUMBER

    async def _look(self) -> None:
        try:
            while len(self._runs) < _MAX_RUNS and not self._is_stopped:
                ids, tenants = {run.batch_id for run in self._runs}, {run.tenant for run in self._runs}
                row = await self.storage.batches.claim(self._server.model_name, ids | self._resting(), tenants)
                if row is None:
                    break
                self._begin(row)
            self.metrics.show(await self.storage.batches.counts())
            if self._swept is None or time.monotonic() - self._swept > _SWEEP:
                self._swept = time.monotonic()
                await self.storage.files.sweep()
                await self.storage.batches.forget_old()
        except StorageError as error:
            logger.warning("batches wait: %s", error)

    def _resting(self) -> set[str]:
        """Batches of which a run failed by a fault of ours, not yet to be tried again; others know no better."""
        now = time.monotonic()
        return {batch_id for batch_id, (when, _) in self._broken.items() if now < when}

    def _begin(self, row: Row) -> None:  # type: ignore[type-arg]
        from server.batches.run import BatchRun  # which imports SQLAlchemy

        run = BatchRun(self, row)
        task = self._runs[run] = asyncio.create_task(self._run(run))
        task.add_done_callback(partial(self._ended, run))
        if self._is_stopped:
            task.cancel()

    async def _run(self, run: BatchRun) -> None:
        """Run one batch while its lease is kept; if that fails, leave it to whoever claims it next."""
        from server.storage.batches import LeaseLostError

        try:
            keeping = asyncio.create_task(run.keep_lease())
            running = asyncio.create_task(run.run())
            try:
                await asyncio.wait({keeping, running}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (keeping, running):
                    task.cancel()
                await asyncio.wait({keeping, running})
                await run.let_go()
            for task in (running, keeping):
                if not task.cancelled():
                    task.result()
        except LeaseLostError:
            logger.warning("batch %s: another server has it now", run.batch_id)
        except StorageError as error:
            logger.warning("batch %s waits: %s", run.batch_id, error)
        else:
            self._woken.set()  # there is room for another one

    def _ended(self, run: BatchRun, task: asyncio.Task[None]) -> None:
        del self._runs[run]
        if not task.cancelled() and (error := task.exception()) is not None:
            pause = min(2 * self._broken.get(run.batch_id, (0.0, _FIRST_REST / 2))[1], _LONGEST_REST)
            self._broken[run.batch_id] = time.monotonic() + pause, pause
            self.metrics.count_fault()
            message = "batch %s is left to another server, or tried again in %g s"
            logger.error(message, run.batch_id, pause, exc_info=error)
        else:
            self._broken.pop(run.batch_id, None)

    def _max_in_flight(self) -> int:
        info = self._server.client.info
        size = info.max_batch_size if info is not None else 1
        return size + max(4, size // 2)  # so that the batch is filled again at once


def _nothing() -> None:
    """What is called once it has been called."""

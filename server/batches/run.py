"""One batch from its claim to its end: validate, run the lines that have no result, make the files.

A line counts as finished once its result is committed; results that come together are committed together. So a server
that is killed loses no finished line, and the next one runs only lines without a result.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import RequestError
from server.batches.in_process import ask
from server.batches.lines import LineChecker, LineSplitter, answered, not_run, parse, streams
from server.http.api_keys import Caller
from server.http.errors import error_body
from server.large import in_thread
from server.storage import BATCH_FILES_LAST
from server.storage.batches import LEASE, LeaseLostError, Result
from server.storage.files import UPLOAD

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy import Row

    from server.batches.runner import BatchRunner

logger = logging.getLogger(__name__)

_UNAVAILABLE = 503
_ATTEMPTS = 3  # for a line during which the engine dies
_ENDS = {"finalizing": "completed", "cancelling": "cancelled", "expiring": "expired"}  # the last is no stored status
_NOT_RUN = {  # what unfinished lines say when a batch ends early
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was run."),
    "expired": ("batch_expired", "This request could not be run before the batch's completion window ended."),
}
_GROUP = 256  # results in a transaction at most: SQLite's driver leaves other threads little time between rows
_STREAM = RequestError("A batch's request cannot be streamed: leave 'stream' out.", "stream")


class BatchRun:
    """Runs one leased batch. Use: `await run()`; cancelling it loses no result that is committed."""

    def __init__(self, runner: BatchRunner, row: Row[Any]) -> None:
        self.batch_id: str = row.id
        self.tenant: str = row.tenant
        self._runner, self._row = runner, row
        self._store, self._files = runner.storage.batches, runner.storage.files
        self._status: str = row.status
        self._changed = asyncio.Event()  # the status, by a cancellation
        self._caller = Caller(bytes.fromhex(row.tenant), row.weight, row.key_name)
        self._has_begun, self._has_ended = row.in_progress_at is not None, False
        self._results: list[Result] = []  # not yet committed
        self._arrived, self._is_over = asyncio.Event(), False  # a result; all of them
        self.look = asyncio.Event()  # the status may have changed

    async def run(self) -> None:
        """Bring the batch to its end.

        Raises:
            LeaseLostError: another server has it now.
            StorageError: the database fails.
        """
        if self._status == "validating":
            await self._validate()
        if self._status == "in_progress":
            await self._run_lines()
        if self._status == "in_progress":
            self._status = await self._store.finalize(self.batch_id)
        if self._status != "failed":
            end = _ENDS[self._status]
            if end in _NOT_RUN:
                await self._give_up(end)
            await self._store.end(self.batch_id, end, BATCH_FILES_LAST)
            self._status = end
        self._has_ended = True
        self._runner.metrics.count_end(self._status)
        logger.info("batch %s: %s", self.batch_id, self._status)

    async def keep_lease(self) -> None:
        """Renew the lease until cancelled, and notice a cancellation or the end of the batch's time."""
        while True:
            status = await self._store.renew(self.batch_id)
            if status == "cancelling":
                self._stop(status)
            elif self._store.now >= self._row.expires_at:
                self._stop("expiring")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEASE / 3):
                    await self.look.wait()
            self.look.clear()

    async def let_go(self) -> None:
        """Let another server, or this one, claim a batch that has not ended."""
        if not self._has_ended:
            with contextlib.suppress(LeaseLostError):
                await self._store.release(self.batch_id)

    def _stop(self, status: str) -> None:
        if self._status in ("validating", "in_progress"):
            self._status = status
            self._changed.set()

    async def _validate(self) -> None:
        runner = self._runner
        checker = LineChecker(self._row.endpoint, runner.model_names, runner.max_lines, runner.max_line_bytes)
        async with contextlib.aclosing(self._lines()) as parts:
            async for lines in parts:
                await in_thread(checker.check, lines)
                if checker.is_full or self._status != "validating":
                    break
        if self._status != "validating":
            return
        if errors := checker.end():
            self._status = await self._store.fail(self.batch_id, errors)
        else:
            self._status = await self._store.begin(self.batch_id, checker.num_lines)
            self._has_begun = self._status == "in_progress"

    async def _run_lines(self) -> None:
        """Run what has no result, and commit results as they come; ends early if the status changes."""
        done = await self._store.finished(self.batch_id)
        running = asyncio.create_task(self._run_all(done))
        committing = asyncio.create_task(self._commit())
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({running, committing, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, changed):
                task.cancel()
            await asyncio.wait({running, changed})
            self._is_over = True
            self._arrived.set()
            await committing  # also if this batch was cancelled: what is finished is kept
        if not running.cancelled():
            running.result()

    async def _run_all(self, done: set[int]) -> None:
        slots = self._runner.slots
        async with asyncio.TaskGroup() as group:
            async for lines in self._lines():
                for number, line in lines:
                    if line is not None and number not in done:
                        place = await slots.take(self._runner.size_of(self._row.endpoint, line))
                        group.create_task(self._run_line(number, line)).add_done_callback(place)

    async def _run_line(self, number: int, data: bytes) -> None:
        line, request_id = parse(data), uuid.uuid4().hex
        if streams(line):
            status, body = 400, msgspec.json.encode(error_body(_STREAM)[1])
        else:
            status, body = await self._ask(line.url, bytes(line.body))
        self._results.append(answered(number, line.custom_id, request_id, status, body))
        self._arrived.set()

    async def _ask(self, url: str, body: bytes) -> tuple[int, bytes]:
        """Answer a line; one during which the engine died is tried again, alone among its like."""
        runner = self._runner
        for attempt in range(_ATTEMPTS):
            async with runner.suspects if attempt else contextlib.nullcontext():
                await runner.until_ready()
                status, answer = await ask(runner.app, url, body, self._caller)
            if status != _UNAVAILABLE:
                break
        return status, answer

    async def _commit(self) -> None:
        """Commit results as they come, until there will be no more."""
        while self._results or not self._is_over:
            await self._arrived.wait()
            if not self._is_over:
                self._arrived.clear()
            group, self._results = self._results[:_GROUP], self._results[_GROUP:]
            if self._results:
                self._arrived.set()
            if group:
                await self._save(group)

    async def _give_up(self, status: str) -> None:
        """Give each line without a result one that says why it was not run."""
        if not self._has_begun:
            return
        done = await self._store.finished(self.batch_id)

        def without_result(lines: list[tuple[int, bytes | None]]) -> list[Result]:
            return [
                not_run(number, parse(line).custom_id, uuid.uuid4().hex, *_NOT_RUN[status])
                for number, line in lines
                if line is not None and number not in done
            ]

        async for lines in self._lines():
            results = await in_thread(without_result, lines)
            for first in range(0, len(results), _GROUP):
                await self._save(results[first : first + _GROUP])

    async def _save(self, group: list[Result]) -> None:
        await self._store.save(self.batch_id, group)
        self._runner.metrics.count_lines(group)

    async def _lines(self) -> AsyncGenerator[list[tuple[int, bytes | None]], None]:
        """Yield the input's lines, as many at a time as come in one part of it."""
        splitter = LineSplitter(self._runner.max_line_bytes)
        async for part in self._files.content(self._row.input_file_id, UPLOAD):
            if lines := await in_thread(splitter.feed, part):
                yield lines
        if lines := splitter.feed(b"", is_last=True):
            yield lines

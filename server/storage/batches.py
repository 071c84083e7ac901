"""Stored batches and their results. A result is kept once, whoever ran its line; what lines say is server.batches'.

A server that runs a batch holds a lease on it, and renews it. A batch whose server is gone is claimed by another one
that serves the same model, or by the same one after its restart. What a server writes counts only while its lease does.

The results are the parts of one content, (batch, line number) -> line of the output or of the error file: so these
files are there, in the order of the input, when the batch ends.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import delete, func, insert, or_, select, update

from engine.errors import NotFoundError, RequestError
from server.storage import LIVE
from server.storage.database import plain
from server.storage.files import ERRORS, OUTPUT
from server.storage.schema import batches, files, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy import ColumnElement, Connection, Row

    from server.storage.database import Database

LEASE = 5.0  # seconds for which a claim holds unless it is renewed
WINDOW = 86400  # seconds until a batch expires
_REMEMBERED = 30 * 86400  # seconds after its creation for which an ended batch is remembered


class LeaseLostError(Exception):
    """Another server has claimed the batch."""


class Result(NamedTuple):
    """What a line brought: a line of the output file, or of the error file, and what it used."""

    number: int
    data: bytes
    is_error: bool
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class BatchStore:
    """The batches of all tenants, as one server sees them."""

    def __init__(self, database: Database, max_batches: int, clock: Callable[[], float] = time.time) -> None:
        """`max_batches` bounds the batches of all tenants that are remembered."""
        self._database, self._max_batches, self._clock = database, max_batches, clock
        self._owner = uuid.uuid4().hex  # of leases: this process

    @property
    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    async def create(self, tenant: bytes, values: dict[str, Any]) -> Row[Any]:
        """A new batch of a tenant.

        Raises:
            RequestError: too many batches are remembered.
        """
        batch_id = f"batch_{uuid.uuid4().hex}"
        times = {"created_at": self.now, "expires_at": self.now + WINDOW}

        def work(connection: Connection) -> None:
            if connection.execute(select(func.count()).select_from(batches)).scalar_one() >= self._max_batches:
                raise RequestError(
                    f"This server remembers {self._max_batches} batches (--max-batches) for 30 days, and has them.",
                    code="storage_limit_exceeded",
                )
            connection.execute(
                insert(batches).values(id=batch_id, tenant=tenant.hex(), status="validating", **times, **values)
            )

        await self._database.write(work)
        return await self.get(tenant, batch_id)

    async def get(self, tenant: bytes, batch_id: str) -> Row[Any]:
        """A tenant's batch.

        Raises:
            NotFoundError: the tenant has no such batch.
        """
        query = select(batches).where(batches.c.id == plain(batch_id), batches.c.tenant == tenant.hex())
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFoundError(f"No such Batch object: {batch_id}", "batch_id")
        return row

    async def page(self, tenant: bytes, *, after: str | None, limit: int) -> tuple[list[Row[Any]], bool]:
        """A tenant's batches, the newest first, from behind the one named `after`; and whether there are more.

        Raises:
            NotFoundError: the tenant has no batch named `after`.
        """
        query = select(batches).where(batches.c.tenant == tenant.hex()).order_by(batches.c.number.desc())
        if after is not None:
            query = query.where(batches.c.number < (await self.get(tenant, after)).number)
        rows = await self._database.read(lambda connection: list(connection.execute(query.limit(limit + 1))))
        return rows[:limit], len(rows) > limit

    async def cancel(self, tenant: bytes, batch_id: str) -> Row[Any]:
        """Ask for the end of a tenant's batch; whoever runs it ends it.

        Raises:
            NotFoundError: the tenant has no such batch.
            RequestError: it has ended, or is about to.
        """
        statement = (
            update(batches)
            .where(
                batches.c.id == plain(batch_id),
                batches.c.tenant == tenant.hex(),
                batches.c.status.in_(("validating", "in_progress")),
            )
            .values(status="cancelling", cancelling_at=self.now)
        )
        num_changed = await self._database.write(lambda connection: connection.execute(statement).rowcount)
        row = await self.get(tenant, batch_id)
        if not num_changed and row.status != "cancelling":
            raise RequestError(f"Cannot cancel a batch with status '{row.status}'.", "batch_id")
        return row

    async def counts(self) -> dict[str, int]:
        """How many batches have each status that is not an end."""
        query = select(batches.c.status, func.count()).where(batches.c.status.in_(LIVE)).group_by(batches.c.status)
        return {
            **dict.fromkeys(LIVE, 0),
            **dict(await self._database.read(lambda connection: [tuple(row) for row in connection.execute(query)])),
        }

    async def forget_old(self) -> None:
        """Forget batches that have ended and are old."""
        old = batches.c.created_at <= self.now - _REMEMBERED
        statement = delete(batches).where(old, batches.c.status.not_in(LIVE))
        await self._database.write(lambda connection: connection.execute(statement).close())

    # What the server that runs a batch does.

    async def claim(self, model: str, running: Collection[str], busy: Collection[str]) -> Row[Any] | None:
        """Lease the oldest batch for this model that nobody runs, of a tenant that is not busy if there is one.

        `running` are the ids of batches that this server runs, or is not to run.
        """
        now = self._clock()
        is_free = or_(
            batches.c.lease_until.is_(None),
            batches.c.lease_until <= now,
            batches.c.lease_until > now + 2 * LEASE,  # a clock was set back
        )
        query = (
            select(batches)
            .where(batches.c.status.in_(LIVE), batches.c.model == model, is_free, batches.c.id.not_in(running))
            .order_by(batches.c.tenant.in_(busy), batches.c.number)
            .limit(1)
        )

        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        values = {"lease_owner": self._owner, "lease_until": now + LEASE}
        take = update(batches).where(batches.c.id == row.id, batches.c.status == row.status, is_free).values(values)
        return row if await self._database.write(lambda connection: connection.execute(take).rowcount) else None

    async def renew(self, batch_id: str) -> str:
        """Keep the lease; the batch's status.

        Raises:
            LeaseLostError: another server has it.
        """
        return await self._move(batch_id, {"lease_until": self._clock() + LEASE}, LIVE)

    async def release(self, batch_id: str) -> None:
        """Let others claim a batch at once.

        Raises:
            LeaseLostError: another server has it.
        """
        values = {"lease_owner": None, "lease_until": None}
        await self._database.write(lambda connection: self._change(connection, batch_id, values))

    async def fail(self, batch_id: str, errors: list[dict[str, Any]]) -> str:
        """End a batch whose file is not valid, unless it is being cancelled; its status now."""
        values = {"status": "failed", "failed_at": self.now, "errors": json.dumps(errors)}
        return await self._move(batch_id, values)

    async def begin(self, batch_id: str, num_lines: int) -> str:
        """Go from validating to in_progress, unless it is being cancelled; its status now."""
        return await self._move(batch_id, {"status": "in_progress", "in_progress_at": self.now, "num_total": num_lines})

    async def finished(self, batch_id: str) -> set[int]:
        """The numbers of the lines that have their result."""
        query = select(parts.c.number).where(parts.c.content_id == batch_id).execution_options(yield_per=1000)
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))

    async def save(self, batch_id: str, results: Sequence[Result]) -> None:
        """Keep results of lines that had none, and count them: all or nothing.

        Raises:
            LeaseLostError: another server has the batch.
        """
        sums: dict[str, ColumnElement[int]] = {}
        for name, total in (
            ("num_completed", sum(not r.is_error for r in results)),
            ("num_failed", sum(r.is_error for r in results)),
            ("num_output_bytes", sum(len(r.data) for r in results if not r.is_error)),
            ("num_error_bytes", sum(len(r.data) for r in results if r.is_error)),
            ("num_input_tokens", sum(r.input_tokens for r in results)),
            ("num_cached_tokens", sum(r.cached_tokens for r in results)),
            ("num_output_tokens", sum(r.output_tokens for r in results)),
            ("num_reasoning_tokens", sum(r.reasoning_tokens for r in results)),
        ):
            sums[name] = batches.c[name] + total

        def work(connection: Connection) -> None:
            self._change(connection, batch_id, sums)
            kinds = {False: OUTPUT, True: ERRORS}
            rows = [
                {"content_id": batch_id, "number": r.number, "kind": kinds[r.is_error], "data": r.data} for r in results
            ]
            connection.execute(insert(parts), rows)

        await self._database.write(work)

    async def finalize(self, batch_id: str) -> str:
        """Say that the files are being made, unless the batch is being cancelled; its status now."""
        return await self._move(batch_id, {"status": "finalizing", "finalizing_at": self.now}, ("in_progress",))

    async def end(self, batch_id: str, status: str, lasts: int) -> None:
        """End a batch: its results become its files, which last so many seconds unless its creator said otherwise."""

        def work(connection: Connection) -> None:
            row = connection.execute(select(batches).where(batches.c.id == batch_id)).one()
            values: dict[str, Any] = {"status": status, f"{status}_at": self.now, "lease_until": None}
            expires_at = self.now + (row.output_expires_after or lasts)
            for kind, name, count, size in (
                (OUTPUT, "output", row.num_completed, row.num_output_bytes),
                (ERRORS, "error", row.num_failed, row.num_error_bytes),
            ):
                if count:
                    values[f"{name}_file_id"] = file_id = f"file-{uuid.uuid4().hex}"
                    connection.execute(
                        insert(files).values(
                            id=file_id,
                            tenant=row.tenant,
                            filename=f"{batch_id}_{name}.jsonl",
                            purpose="batch_output",
                            bytes=size,
                            created_at=self.now,
                            expires_at=expires_at,
                            is_complete=1,
                            content_id=batch_id,
                            kind=kind,
                        )
                    )
            self._change(connection, batch_id, values)

        await self._database.write(work)

    async def _move(
        self, batch_id: str, values: dict[str, Any], before: tuple[str, ...] = ("validating", "in_progress")
    ) -> str:
        """Change a batch that has one of these statuses; its status now."""

        def work(connection: Connection) -> str:
            self._change(connection, batch_id, values, before)
            return str(connection.execute(select(batches.c.status).where(batches.c.id == batch_id)).scalar_one())

        return await self._database.write(work)

    def _change(
        self, connection: Connection, batch_id: str, values: dict[str, Any], before: tuple[str, ...] = LIVE
    ) -> None:
        """Change a batch that this server has leased, if it has one of these statuses."""
        ours = update(batches).where(batches.c.id == batch_id, batches.c.lease_owner == self._owner)
        if not connection.execute(ours.values(lease_owner=self._owner)).rowcount:  # which locks the row, too
            raise LeaseLostError(batch_id)
        connection.execute(ours.where(batches.c.status.in_(before)).values(values))

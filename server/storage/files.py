"""Stored files: each tenant's own, in parts, so that no file is ever whole in memory. Bounded in number and bytes.

A file that was deleted or has expired is found by nobody; its parts go with the next `sweep`, but not before the
running batches that read it have ended.
"""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sqlalchemy import delete, func, insert, select, update

from engine.errors import NotFoundError, OverloadedError, RequestError
from server.storage import LIVE
from server.storage.database import plain
from server.storage.schema import batches, files, parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import ColumnElement, Connection

    from server.storage.database import Database

MAX_UPLOADS = 32  # at a time; each has some 512 KiB in memory
_ABANDONED_AFTER = 86400  # seconds after which an upload that never ended is removed
_PARTS_AT_A_TIME = 8  # that are fetched, or of large ones deleted, together
_MAX_READ, _MAX_ROWS = 2 << 20, 1000  # bytes, and parts, that one transaction reads
_DELETED = 0  # an expiry that has been
UPLOAD = 0  # the kind of an upload's parts; a batch's results have OUTPUT and ERRORS
OUTPUT, ERRORS = 0, 1


class StoredFile(NamedTuple):
    """A file's row, without whose it is."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None
    content_id: str
    kind: int


class FileStore:
    """The files of all tenants."""

    def __init__(
        self, database: Database, max_files: int, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Bounds are for all tenants together."""
        self.database, self._max_files, self._max_bytes, self._clock = database, max_files, max_bytes, clock
        self.num_uploads = 0  # under way

    @property
    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    def upload(self, tenant: bytes) -> Upload:
        """A new file of a tenant, to be written within `async with`; without `finish` nothing of it is kept."""
        return Upload(self, tenant)

    async def get(self, tenant: bytes, file_id: str) -> StoredFile:
        """A tenant's file.

        Raises:
            NotFoundError: the tenant has no such file.
        """
        query = select(*_columns()).where(files.c.id == plain(file_id), *self._visible(tenant))
        row = await self.database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFoundError(f"No such File object: {file_id}", "file_id")
        return StoredFile(*row)

    async def page(
        self, tenant: bytes, *, after: str | None, limit: int, is_ascending: bool, purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """A tenant's files in order of creation, from behind the one named `after`; and whether there are more.

        Raises:
            NotFoundError: the tenant has no file named `after`.
        """
        query = select(*_columns()).where(*self._visible(tenant)).limit(limit + 1)
        if purpose is not None:
            query = query.where(files.c.purpose == plain(purpose))

        def work(connection: Connection) -> list[Any]:
            number, ordered = files.c.number, query.order_by(files.c.number if is_ascending else files.c.number.desc())
            if after is not None:
                of_tenant = select(number).where(files.c.id == plain(after), files.c.tenant == tenant.hex())
                start = connection.execute(of_tenant).scalar_one_or_none()
                if start is None:
                    raise NotFoundError(f"No such File object: {after}", "after")
                ordered = ordered.where(number > start if is_ascending else number < start)
            return list(connection.execute(ordered))

        rows = [StoredFile(*row) for row in await self.database.read(work)]
        return rows[:limit], len(rows) > limit

    async def delete(self, tenant: bytes, file_id: str) -> None:
        """Have nobody find a tenant's file any more.

        Raises:
            NotFoundError: the tenant has no such file.
        """
        theirs = (files.c.id == plain(file_id), *self._visible(tenant))
        statement = update(files).where(*theirs).values(expires_at=_DELETED)
        if not await self.database.write(lambda connection: connection.execute(statement).rowcount):
            raise NotFoundError(f"No such File object: {file_id}", "file_id")

    async def content(self, content_id: str, kind: int) -> AsyncIterator[bytes]:
        """The parts of a content, some MiB of them in memory at a time."""
        last: int | None = -1
        while last is not None:
            data, last = await self.database.read(partial(_read_some, content_id, kind, last))
            for part in data:
                yield part

    async def check_room(self, num_bytes: int = 0) -> None:
        """Refuse what would be more than the bounds.

        Raises:
            RequestError: so many bytes more, or one file more, are too much.
        """
        await self.database.read(lambda connection: self._check_room(connection, num_bytes))

    async def sweep(self) -> None:
        """Remove what has expired, was deleted or never ended, a few parts at a time."""
        read_by_batches = select(batches.c.input_file_id).where(batches.c.status.in_(LIVE))
        doomed = select(files.c.number, files.c.content_id, files.c.kind).where(
            files.c.expires_at <= self.now, files.c.id.not_in(read_by_batches)
        )
        gone = await self.database.read(lambda connection: list(connection.execute(doomed)))

        def remove_some(connection: Connection, number: int, content_id: str, kind: int) -> bool:
            theirs = (parts.c.content_id == content_id, parts.c.kind == kind)
            some = select(parts.c.number).where(*theirs).order_by(parts.c.number).limit(_PARTS_AT_A_TIME * 32)
            numbers = list(connection.execute(some).scalars())
            if not numbers:
                connection.execute(delete(files).where(files.c.number == number))
                return False
            connection.execute(delete(parts).where(*theirs, parts.c.number <= numbers[-1]))
            return True

        for row in gone:
            while await self.database.write(lambda connection, row=row: remove_some(connection, *row)):  # type: ignore[misc]
                pass
        if gone:
            await self.database.shrink()

    def _visible(self, tenant: bytes) -> tuple[ColumnElement[bool], ...]:
        is_kept = (files.c.expires_at.is_(None)) | (files.c.expires_at > self.now)
        return files.c.tenant == tenant.hex(), files.c.is_complete == 1, is_kept

    def _check_room(self, connection: Connection, num_bytes: int) -> None:
        count, total = connection.execute(select(func.count(), func.coalesce(func.sum(files.c.bytes), 0))).one()
        if count >= self._max_files + bool(num_bytes):  # which is one of them
            raise RequestError(
                f"This server keeps {self._max_files} files (--max-files), and has them. Delete some.",
                code="storage_limit_exceeded",
            )
        written = func.coalesce(func.sum(batches.c.num_output_bytes + batches.c.num_error_bytes), 0)
        total += connection.execute(select(written).where(batches.c.status.in_(LIVE))).scalar_one()  # no files yet
        if total + num_bytes > self._max_bytes:
            raise RequestError(
                f"This server keeps {self._max_bytes >> 20} MiB of files (--max-files-size), and has {total >> 20}. "
                "Delete some.",
                code="storage_limit_exceeded",
            )


class Upload:
    """One file while it is written."""

    def __init__(self, store: FileStore, tenant: bytes) -> None:
        self.file_id = f"file-{uuid.uuid4().hex}"
        self._store, self._tenant = store, tenant
        self._num_parts = self._num_bytes = 0
        self._is_finished = False

    async def __aenter__(self) -> Self:
        """Make an unfinished file, which a sweep finds if this process ends.

        Raises:
            RequestError: there is no room for one more.
            OverloadedError: MAX_UPLOADS are under way.
        """
        if self._store.num_uploads >= MAX_UPLOADS:
            raise OverloadedError(f"The server receives {MAX_UPLOADS} files at the moment, as many as it does.", 1.0)
        store = self._store
        row = {
            "id": self.file_id,
            "tenant": self._tenant.hex(),
            "filename": "",
            "purpose": "",
            "bytes": 0,
            "created_at": store.now,
            "expires_at": store.now + _ABANDONED_AFTER,
            "is_complete": 0,
            "content_id": self.file_id,
            "kind": UPLOAD,
        }

        def work(connection: Connection) -> None:
            store._check_room(connection, 0)
            connection.execute(insert(files).values(row))

        store.num_uploads += 1
        try:
            await store.database.write(work)
        except BaseException:
            store.num_uploads -= 1
            raise
        return self

    async def write(self, data: bytes) -> None:
        """Append a part, which is committed when this returns.

        Raises:
            RequestError: there is no room for it.
        """
        store, number = self._store, self._num_parts

        def work(connection: Connection) -> None:
            store._check_room(connection, len(data))
            connection.execute(insert(parts).values(content_id=self.file_id, number=number, kind=UPLOAD, data=data))
            size = self._num_bytes + len(data)
            connection.execute(update(files).where(files.c.id == self.file_id).values(bytes=size))

        await store.database.write(work)
        self._num_parts += 1
        self._num_bytes += len(data)

    async def finish(self, filename: str, purpose: str, lasts: int | None) -> StoredFile:
        """Have its tenant find the file; `lasts` is for how many seconds."""
        now = self._store.now
        values = {
            "filename": filename,
            "purpose": purpose,
            "created_at": now,
            "expires_at": None if lasts is None else now + lasts,
            "is_complete": 1,
        }
        statement = update(files).where(files.c.id == self.file_id).values(values)
        await self._store.database.write(lambda connection: connection.execute(statement).close())
        self._is_finished = True
        return await self._store.get(self._tenant, self.file_id)

    async def __aexit__(self, *_: object) -> None:
        self._store.num_uploads -= 1
        if self._is_finished:
            return
        statement = update(files).where(files.c.id == self.file_id).values(expires_at=_DELETED)
        await self._store.database.write(lambda connection: connection.execute(statement).close())
        await self._store.sweep()


def _read_some(content_id: str, kind: int, last: int, connection: Connection) -> tuple[list[bytes], int | None]:
    """The parts behind one by its number, until they are enough; the last one's number, None if no more follow."""
    query = select(parts.c.number, parts.c.data).where(parts.c.content_id == content_id, parts.c.kind == kind)
    query = query.where(parts.c.number > last).order_by(parts.c.number).limit(_MAX_ROWS + 1)
    found: list[bytes] = []
    size = 0
    with connection.execution_options(yield_per=_PARTS_AT_A_TIME).execute(query) as rows:
        for number, data in rows:
            if size >= _MAX_READ or len(found) == _MAX_ROWS:
                return found, last
            found.append(data)
            last, size = number, size + len(data)
    return found, None


def _columns() -> list[Any]:
    return [files.c[name] for name in StoredFile._fields]

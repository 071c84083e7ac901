"""One database behind SQLAlchemy: SQLite in the data folder, or any other by its URL. Knows no tables' meaning.

It is opened at its first use, so a server starts quickly, and also where nothing can be written. Work is a function of
a connection, run in a thread and in one transaction:

    await database.read(lambda connection: connection.execute(select(...)).all())
    await database.write(work)          # commits; on an error nothing of it is kept

Every failure of the database is a StorageError, whose text says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import StorageError
from engine.names import name_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import SQLAlchemyError

T = TypeVar("T")

OFF, MEMORY = "off", "memory"  # values of --data-dir
PART_BYTES = 256 << 10  # of a file's content that is stored in one piece
_MEMORY_URL = "sqlite://"
_NUM_THREADS = 4
_BUSY_TIMEOUT = 10.0  # seconds that one writer waits for another


def default_url(data_dir: str | None) -> str | None:
    """The URL of the SQLite database in a data folder; None where nothing is to be stored."""
    if data_dir == OFF:
        return None
    if data_dir == MEMORY:
        return _MEMORY_URL
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = Path(data_dir or f"{state}/deepseek-serve").expanduser().absolute()
    return f"sqlite:///{folder / 'deepseek-serve.sqlite'}"


def plain(text: str) -> str:
    """A caller's text as any database can be asked for it: PostgreSQL refuses NUL."""
    return text.replace("\0", "\ufffd")


class Database:
    """A database that opens itself; see the module's words."""

    def __init__(self, url: str | None) -> None:
        """`url` is SQLAlchemy's; None refuses all use."""
        self._url = url
        self._engine: Engine | None = None
        self._opening = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    @property
    def is_off(self) -> bool:
        """Whether all use is refused."""
        return self._url is None

    @property
    def may_have_data(self) -> bool:
        """Whether there can be anything in it; costs a look at the file at most."""
        if self._engine is not None:
            return True
        path = self._sqlite_path
        return self._url is not None and (os.path.exists(path) if path is not None else not self._is_sqlite)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a thread, in a transaction that sees one state of the database."""
        return await self._run(work, is_write=False)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a thread, in a transaction that is committed before this returns."""
        return await self._run(work, is_write=True)

    async def shrink(self) -> None:
        """Give the disk back what was deleted."""
        if self._is_sqlite:
            await self.write(lambda connection: connection.exec_driver_sql("PRAGMA incremental_vacuum").close())

    async def close(self) -> None:
        """Let running work end, and close all connections."""
        if self._threads is not None:
            if self._url == _MEMORY_URL:  # its connection is closed by the thread that made it
                self._threads.submit(self._dispose)
            await asyncio.to_thread(self._threads.shutdown)
        self._dispose()

    def _dispose(self) -> None:
        if self._engine is not None:
            self._engine.dispose()

    async def _run(self, work: Callable[[Connection], T], *, is_write: bool) -> T:
        if self._threads is None:  # one thread for a database in memory, which lives in one connection
            number = 1 if self._url == _MEMORY_URL else _NUM_THREADS
            self._threads = ThreadPoolExecutor(number, "database", name_thread, ("database",))
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._transact, work, is_write)

    def _transact(self, work: Callable[[Connection], T], is_write: bool) -> T:
        try:
            with self._open().connect().execution_options(is_write=is_write) as connection, connection.begin():
                return work(connection)
        except StorageError:
            raise
        except Exception as error:
            if (explained := self._explain(error)) is None:
                raise
            raise explained from error

    def _open(self) -> Engine:
        with self._opening:
            if self._engine is None:
                self._engine = self._make_engine()
            return self._engine

    def _make_engine(self) -> Engine:
        if self._url is None:
            raise StorageError("This server stores nothing: it runs with --data-dir off.")
        from sqlalchemy import create_engine, event

        from server.storage.schema import migrate

        if (path := self._sqlite_path) is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise StorageError(f"Nothing can be stored in {path.parent}: {error.strerror} (--data-dir).") from None
        options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_TIMEOUT}} if self._is_sqlite else {}
        engine = create_engine(self._url, **options)
        if self._is_sqlite:
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        try:
            with engine.connect().execution_options(is_write=True) as connection, connection.begin():
                migrate(connection)
        except BaseException:
            engine.dispose()
            raise
        if path is not None:
            path.chmod(0o600)
        return engine

    @property
    def _is_sqlite(self) -> bool:
        return self._url is not None and self._url.startswith("sqlite")

    @property
    def _sqlite_path(self) -> Path | None:
        """The file of an SQLite database."""
        _, _, path = (self._url or "").partition(":///")
        return Path(path) if self._is_sqlite and path else None

    def _explain(self, error: Exception) -> StorageError | None:
        """The user's words for what the database raised; None if it is no fault of the database."""
        from sqlalchemy.exc import SQLAlchemyError

        where = f"the database {self._sqlite_path}" if self._sqlite_path is not None else "the database"
        if isinstance(error, ModuleNotFoundError):
            return StorageError(f"--database-url needs a driver that is not installed: {error.name}.")
        if not isinstance(error, SQLAlchemyError):
            return None
        return StorageError(f"Nothing could be stored or found: {where} says '{_reason(error)}'.")


def _reason(error: SQLAlchemyError) -> str:
    """The driver's own words, of one line and without values."""
    words = str(getattr(error, "orig", None) or error).strip().splitlines()
    return words[0] if words else type(error).__name__


def _prepare_sqlite(connection: Any, _: object) -> None:
    """Have SQLAlchemy begin transactions, and readers go on beside a writer.

    A commit survives the end of the process; the last commits before a power cut may be lost, as a whole.
    """
    connection.isolation_level = None
    for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL"):
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once where it will be wanted: SQLite refuses to wait for it later."""
    is_write = connection.get_execution_options().get("is_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")

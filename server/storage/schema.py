"""The tables, and how an older database becomes this one. Imports SQLAlchemy: only `server.storage` imports this, late.

Times are Unix seconds; a tenant is the hash of an API key. A stored content (a file's, or the results of a batch) is
parts in order: (content_id, number) -> data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    update,
)

from engine.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1

metadata = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only if they are INTEGER
_Bytes = LargeBinary(1 << 30)

version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

files = Table(
    "files",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),  # in order of creation
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),  # past: nobody finds it any more; it goes when no running batch reads it
    Column("is_complete", Integer, nullable=False),  # 0 while it is uploaded
    Column("content_id", String(64), nullable=False),
    Column("kind", Integer, nullable=False),  # which of the content's parts are the file's
    Index("files_by_tenant", "tenant", "number"),
    Index("files_by_expiry", "expires_at"),
    Index("files_by_bytes", "bytes"),  # all of them are counted and added up whenever one grows
    sqlite_autoincrement=True,
)

parts = Table(
    "parts",
    metadata,
    Column("content_id", String(64), primary_key=True),
    Column("number", _Number, primary_key=True, autoincrement=False),
    Column("kind", Integer, nullable=False),
    Column("data", _Bytes, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),
    Column("key_name", String(64), nullable=False),
    Column("weight", Float, nullable=False),
    Column("model", Text, nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    *(
        Column(f"{event}_at", BigInteger, nullable=event != "created")
        for event in ("created", "in_progress", "expires", "finalizing", "completed", "failed", "expired")
    ),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("metadata", Text),  # JSON
    Column("errors", Text),  # JSON
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("output_expires_after", BigInteger),  # seconds
    *(
        Column(f"num_{what}", BigInteger, nullable=False, server_default="0")
        for what in ("total", "completed", "failed", "output_bytes", "error_bytes")
    ),
    *(
        Column(f"num_{what}_tokens", BigInteger, nullable=False, server_default="0")
        for what in ("input", "cached", "output", "reasoning")
    ),
    Column("lease_owner", String(64)),  # the server that runs it, until:
    Column("lease_until", Float),
    Index("batches_by_tenant", "tenant", "number"),
    Index("batches_by_status", "status"),
    sqlite_autoincrement=True,
)

responses = Table(
    "responses",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", String(128), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("data", _Bytes, nullable=False),
    Index("responses_by_expiry", "expires_at"),
    Index("responses_by_size", "size"),  # all of them are counted and added up whenever one is stored
    sqlite_autoincrement=True,
)

MIGRATIONS: dict[int, Callable[[Connection], None]] = {}  # version -> what makes it of the one before; 1 is the first


def migrate(connection: Connection) -> None:
    """Make the tables, or bring older ones to VERSION.

    Raises:
        StorageError: the database is of a newer version.
    """
    if not inspect(connection).has_table(version.name):
        metadata.create_all(connection)
        connection.execute(insert(version).values(version=VERSION))
        return
    found = connection.execute(select(version.c.version)).scalar_one()
    if found > VERSION:
        message = f"The database was written by a newer server: its version is {found}, this server's is {VERSION}."
        raise StorageError(message)
    for number in range(found + 1, VERSION + 1):
        MIGRATIONS[number](connection)
        connection.execute(update(version).values(version=number))

"""Stored responses: JSON under an id, by tenant, for a time. What the JSON says is its writer's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from server.storage.database import plain
from server.storage.schema import responses

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from server.storage.database import Database

KEPT_FOR = 30 * 86400  # seconds, as OpenAI keeps them


class ResponseStore:
    """At most so many responses and bytes of all tenants; the oldest make room for new ones."""

    def __init__(
        self, database: Database, max_responses: int, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._max_responses, self._max_bytes, self._clock = database, max_responses, max_bytes, clock

    async def put(self, tenant: bytes, response_id: str, data: bytes) -> None:
        """Store a response under a new id. One larger than the whole store is not kept.

        Raises:
            StorageError: it could not be stored.
        """
        now = int(self._clock())

        def work(connection: Connection) -> None:
            connection.execute(delete(responses).where(responses.c.expires_at <= now))
            connection.execute(
                insert(responses).values(
                    id=response_id,
                    tenant=tenant.hex(),
                    created_at=now,
                    expires_at=now + KEPT_FOR,
                    size=len(data),
                    data=data,
                )
            )
            count, total = connection.execute(select(func.count(), func.sum(responses.c.size))).one()
            oldest = select(responses.c.number, responses.c.size).order_by(responses.c.number).limit(1)
            while count and (count > self._max_responses or total > self._max_bytes):
                number, size = connection.execute(oldest).one()
                connection.execute(delete(responses).where(responses.c.number == number))
                count, total = count - 1, total - size

        await self._database.write(work)

    async def get(self, tenant: bytes, response_id: str) -> bytes | None:
        """A tenant's response; None if it is not there, or no more."""
        query = select(responses.c.data).where(
            responses.c.id == plain(response_id),
            responses.c.tenant == tenant.hex(),
            responses.c.expires_at > int(self._clock()),
        )
        return await self._database.read(lambda connection: connection.execute(query).scalar_one_or_none())

    async def delete(self, tenant: bytes, response_id: str) -> bool:
        """Forget a tenant's response; whether there was one."""
        statement = delete(responses).where(responses.c.id == plain(response_id), responses.c.tenant == tenant.hex())
        return await self._database.write(lambda connection: connection.execute(statement).rowcount > 0)

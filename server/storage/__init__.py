"""What outlives a request: files, batches and stored responses, in one database (server.storage.database).

`Storage` is made by `server.app` and is `server.state.ServerState.storage`; a route uses it like this:

    await server.storage.responses.put(caller.tenant, response_id, json_bytes)
    json_bytes = await server.storage.responses.get(caller.tenant, response_id)     # None: not this tenant's, or gone

Nothing is opened, and SQLAlchemy is not imported, before the first use. Each method may raise StorageError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.storage.database import Database, default_url
from server.storage.responses import ResponseStore

if TYPE_CHECKING:
    from server.config import ServerConfig


class Storage:
    """The stores, over one database."""

    def __init__(self, config: ServerConfig) -> None:
        self.database = Database(config.database_url or default_url(config.data_dir))
        self.responses = ResponseStore(
            self.database, config.max_stored_responses, int(config.max_stored_responses_size * (1 << 20))
        )

    async def close(self) -> None:
        """Close the database; no method may be called any more."""
        await self.database.close()

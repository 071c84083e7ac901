"""What outlives a request: files, batches and stored responses, in one database (server.storage.database).

`Storage` is made by `server.app` and is `server.state.ServerState.storage`; a route uses it like this:

    await server.storage.responses.put(caller.tenant, response_id, json_bytes)
    json_bytes = await server.storage.responses.get(caller.tenant, response_id)     # None: not this tenant's, or gone

Nothing is opened before the first use. SQLAlchemy is imported with the first store: `prepare` does that in a thread.
Each method may raise StorageError.
"""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from server.storage.database import Database, default_url

if TYPE_CHECKING:
    from server.config import ServerConfig
    from server.storage.batches import BatchStore
    from server.storage.files import FileStore
    from server.storage.responses import ResponseStore


LIVE = ("validating", "in_progress", "finalizing", "cancelling")  # statuses of batches that have not ended
BATCH_FILES_LAST = 30 * 86400  # seconds, as OpenAI's: files for batches and of them


class Storage:
    """The stores, over one database."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.database = Database(config.database_url or default_url(config.data_dir))

    @property
    def is_off(self) -> bool:
        """Whether nothing is to be stored."""
        return self.database.is_off

    @cached_property
    def responses(self) -> ResponseStore:
        """Stored responses, of all tenants."""
        from server.storage.responses import ResponseStore

        max_bytes = int(self._config.max_stored_responses_size * (1 << 20))
        return ResponseStore(self.database, self._config.max_stored_responses, max_bytes)

    @cached_property
    def files(self) -> FileStore:
        """Files, of all tenants."""
        from server.storage.files import FileStore

        return FileStore(self.database, self._config.max_files, int(self._config.max_files_size * (1 << 20)))

    @cached_property
    def batches(self) -> BatchStore:
        """Batches, of all tenants."""
        from server.storage.batches import BatchStore

        return BatchStore(self.database, self._config.max_batches)

    def prepare(self) -> None:
        """Import what the stores need, which takes a fifth of a second; the event loop is not to wait for it."""
        for name in ("responses", "files", "batches"):
            import_module(f"server.storage.{name}")

    async def close(self) -> None:
        """Close the database; no method may be called any more."""
        await self.database.close()

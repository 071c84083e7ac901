"""A database in a folder, and the ways in which it breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from server.storage.database import Database, default_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def database_path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "deepseek-serve.sqlite"


@pytest_asyncio.fixture
async def database(database_path: Path) -> AsyncIterator[Database]:
    database = Database(default_url(str(database_path.parent)))
    yield database
    await database.close()

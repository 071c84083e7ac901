"""What is kept of responses: the answer and the items that it answers, by tenant, in the server's storage.

An item's id has its response's in it, so an item is found with its response: `resp_KEY` has items `msg_KEY_0`, ...
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from pydantic import TypeAdapter

from engine.errors import NotFoundError, RequestError, StorageError
from server.large import apart, grows
from server.responses.items import AnyItem, InputItem, ItemReference, Json

if TYPE_CHECKING:
    from server.storage import Storage

_items: TypeAdapter[list[InputItem]] = TypeAdapter(list[AnyItem])
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredResponse:
    """A response, and all items that came before its output: earlier responses' too. Each item has an id."""

    response: Json
    input: list[Json]

    @property
    def items(self) -> list[Json]:
        """The conversation with the answer."""
        return [*self.input, *self.response["output"]]


class History:
    """One tenant's stored responses."""

    def __init__(self, storage: Storage, tenant: bytes) -> None:
        self._responses, self._tenant, self._is_off = storage.responses, tenant, storage.is_off

    async def find(self, response_id: str) -> StoredResponse:
        """Return a stored response.

        Raises:
            NotFoundError: it was never stored, is another caller's, or has made room for others.
            StorageError: the storage cannot be read.
        """
        data = await self._responses.get(self._tenant, response_id)
        if data is None:
            raise NotFoundError(f"There is no stored response with the id '{response_id}'.", "response_id")
        grows(len(data))
        return StoredResponse(**await apart(json.loads, data))

    async def delete(self, response_id: str) -> None:
        """Forget a response. Raises as `find` does."""
        if not await self._responses.delete(self._tenant, response_id):
            raise NotFoundError(f"There is no stored response with the id '{response_id}'.", "response_id")

    async def keep(self, stored: StoredResponse) -> bool:
        """Store a response; whether that was possible. A server that cannot store anything still answers."""
        data = msgspec.json.encode({"response": stored.response, "input": stored.input})
        try:
            await self._responses.put(self._tenant, stored.response["id"], data)
        except StorageError as error:
            if not self._is_off:  # which is as it was asked for
                logger.warning("a response was not stored: %s", error)
            return False
        return True

    async def conversation(self, previous_id: str | None, items: list[InputItem]) -> list[InputItem]:
        """Return the items of the previous response and then these, with what their references name in their place.

        Raises:
            RequestError: there is no such response or item.
            StorageError: the storage cannot be read.
        """
        try:
            earlier = [] if previous_id is None else (await self.find(previous_id)).items
        except NotFoundError as error:
            raise RequestError(str(error), "previous_response_id", "previous_response_not_found") from None
        found: dict[str, dict[str, Json]] = {}  # response id -> its items by their ids
        whole: list[Json | InputItem] = [
            *earlier,
            *[await self._look_up(item.id, found) if isinstance(item, ItemReference) else item for item in items],
        ]
        stored = iter(await apart(_items.validate_python, [item for item in whole if isinstance(item, dict)]))
        return [next(stored) if isinstance(item, dict) else item for item in whole]

    async def _look_up(self, item_id: str, found: dict[str, dict[str, Json]]) -> Json:
        response_id = f"resp_{item_id.partition('_')[2].partition('_')[0]}"
        try:
            if response_id not in found:
                found[response_id] = {item["id"]: item for item in (await self.find(response_id)).items}
            return found[response_id][item_id]
        except (NotFoundError, KeyError):
            raise RequestError(f"There is no stored item with the id '{item_id}'.", "input") from None

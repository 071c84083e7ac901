"""Request bodies: read as JSON whatever their content type, within a bound that keeps the event loop free.

A decoder holds the loop for as long as a body has values. The bound is on what can begin a value or a key, counted
before anything is decoded: also in strings, where a text that reaches it is longer than any context here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MAX_VALUES = 200_000  # decoded in at most 20 ms; a longer context than half of this allows twice its tokens
MAX_KEYS = 50_000


class JsonRoute(APIRoute):
    """A route whose body is JSON, with or without the header that says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Called by FastAPI."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request))

        return handle_json


class _JsonRequest(Request):
    def __init__(self, request: Request) -> None:
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
        super().__init__(scope, request.receive)
        info = request.app.state.server.client.info
        self._max_values = max(MAX_VALUES, 2 * info.max_seq_len if info else 0)

    async def json(self) -> Any:
        body = await self.body()
        if body.count(b",") + body.count(b"[") + body.count(b"{") > self._max_values or body.count(b":") > MAX_KEYS:
            message = f"The body has more than {self._max_values} values or {MAX_KEYS} keys; no prompt needs as many."
            raise HTTPException(400, message)
        try:
            return json.loads(body)
        except (UnicodeDecodeError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from None

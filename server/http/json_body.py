"""Request bodies: read as JSON whatever their content type, within a bound that keeps the event loop free.

A decoder holds the event loop longer the more values and keys a body has. Both are counted before anything is decoded.
Commas and brackets in strings count too: of these, a token has at most four. JSON is UTF-8 and nothing else, so that
bytes can be counted.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from server.memory import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MAX_VALUES = 320_000  # decoded in at most 30 ms; the 300,000 tokens that OpenAI takes for embeddings in one request
MAX_KEYS = 50_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN = 64  # characters of a key in an error
_VALUES_PER_TOKEN = 4  # which a longer context allows


class JsonRoute(APIRoute):
    """A route whose body is JSON, with or without the header that says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Called by FastAPI."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            json_request = _JsonRequest(request)
            try:
                return await handle(json_request)
            finally:
                if json_request.is_large:
                    request.app.state.trimming.soon()

        return handle_json


class _JsonRequest(Request):
    def __init__(self, request: Request) -> None:
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
        super().__init__(scope, request.receive)
        self.is_large = False
        info = request.app.state.server.client.info
        context = info.max_seq_len if info else 0
        self._max_values, self._max_keys = max(MAX_VALUES, _VALUES_PER_TOKEN * context), max(MAX_KEYS, context)

    async def json(self) -> Any:
        body = await self.body()
        self.is_large = len(body) > LARGE
        num_values = body.count(b",") + body.count(b"[") + body.count(b"{")
        if num_values > self._max_values or _has_more_keys(body, self._max_keys):
            message = f"The body has more than {self._max_values} values or {self._max_keys} keys: no prompt has."
            raise HTTPException(400, message)
        try:
            value = json.loads(
                body.removeprefix(BOM_UTF8).decode(), object_pairs_hook=_unique
            )  # of bytes, it takes UTF-16 too
            if _SURROGATE.search(body):  # of an emoji, or half of one, which is no text and cannot be written again
                json.dumps(value, ensure_ascii=False).encode()
            return value
        except json.JSONDecodeError:
            raise
        except UnicodeEncodeError:
            raise json.JSONDecodeError("it has half a surrogate pair", "", 0) from None
        except (ValueError, RecursionError) as error:  # no Unicode; a number of thousands of digits
            raise json.JSONDecodeError(str(error), "", 0) from None


def _has_more_keys(body: bytes, most: int) -> bool:
    """Whether a body may have more keys than so many: colons behind a string's end, with or without white space."""
    if body.count(b":") <= most:  # nearly always, and a single byte is counted the fastest
        return False
    return sum(body.count(before + b":") for before in (b'"', b" ", b"\t", b"\n", b"\r")) > most


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, whose keys must differ: what stands before this server may read the other value of the two.

    Raises:
        ValueError: naming a key that comes twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {twice[:_SHOWN]!a} twice")
    return found

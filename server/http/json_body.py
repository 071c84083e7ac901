"""Request bodies: read as JSON whatever their content type, and none of them holds the event loop.

A decoder holds all threads longer the more values and keys a body has, so both are counted before anything is decoded.
A body that is not small is decoded and validated in the thread for large requests (server.large). Commas and brackets
in strings count too: of these, a token has at most four. JSON is UTF-8 and nothing else, so that bytes can be counted.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from server import large
from server.http.access import LEFT
from server.http.errors import telling_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MAX_VALUES = 320_000  # decoded in at most 30 ms; the 300,000 tokens that OpenAI takes for embeddings in one request
MAX_KEYS = 20_000  # validated in at most 50 ms; OpenAI takes 5,000 properties in a schema, 4,096 messages have 8,192
MAX_KEYS_OF_OBJECT = 5_000  # pydantic reports each that it does not know
MOST_KEYS = 80_000  # of a model with a longer context
SMALL_KEYS = 512  # of bodies that take at most 2 ms, for which no thread is worth it
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN = 64  # characters of a key in an error
_VALUES_PER_TOKEN = 4  # which a longer context allows
_DECODED = b"-"  # in place of a large body's bytes, of which nobody reads more than that there are some


class JsonRoute(APIRoute):
    """A route whose body is JSON, with or without the header that says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Called by FastAPI."""
        handle, has_body = super().get_route_handler(), self.body_field is not None

        async def handle_json(request: Request) -> Response:
            json_request, state = _JsonRequest(request), request.app.state
            try:
                num_bytes = len(body := await json_request.body() if has_body else b"")
            except ClientDisconnect:
                raise HTTPException(LEFT, "The client left.") from None
            if num_bytes <= large.SMALL_BYTES and body.count(b":") <= SMALL_KEYS:
                return await handle(json_request)
            del body
            with state.large.one(num_bytes, is_bounded_elsewhere=request.scope.get("is_background", False)):
                try:
                    await json_request.read_apart(self._validated)
                    return await handle(json_request)
                finally:
                    state.trimming.count(num_bytes)

        return handle_json

    def _validated(self, body: bytes) -> Any:
        """Return the model of a body, which FastAPI takes as it is.

        Raises:
            RequestValidationError: with the problem that the answer tells of.
        """
        problem: dict[str, Any]
        try:
            value = _decoded(body)
        except json.JSONDecodeError as error:  # which has the whole text
            problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "", "ctx": {"error": error.msg}}
        else:
            assert self.body_field is not None
            model, problems = self.body_field.validate(value, loc=("body",))
            if not problems:
                return model
            problem = {**telling_problem(problems), "input": None}  # which is a part of the body
        raise RequestValidationError([problem])


class _JsonRequest(Request):
    def __init__(self, request: Request) -> None:
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
        super().__init__(scope, request.receive)
        info = request.app.state.server.client.info
        self._context = info.max_seq_len if info else 0

    async def read_apart(self, read: Callable[[bytes], Any]) -> None:
        """Make of the body, in the thread for large requests, what `json` returns from now on.

        Raises:
            HTTPException: it has too many values or keys.
        """

        def checked(body: bytes) -> Any:
            max_values = max(MAX_VALUES, _VALUES_PER_TOKEN * self._context)
            max_keys = max(MAX_KEYS, min(self._context, MOST_KEYS))
            if _num_values(body) > max_values or _has_more_keys(body, max_keys):
                message = f"The body has more than {max_values} values or {max_keys} keys: no prompt has."
                raise HTTPException(400, message)
            return read(body)

        body, self._body = self._body, _DECODED
        self._json = await large.in_thread(checked, body)

    async def json(self) -> Any:
        return self._json if hasattr(self, "_json") else _decoded(await self.body())


def _decoded(body: bytes) -> Any:
    """Return the value of a body.

    Raises:
        json.JSONDecodeError: it is not JSON, or has what JSON had better not have.
    """
    try:
        # of bytes, json.loads takes UTF-16 too
        value = json.loads(body.removeprefix(BOM_UTF8).decode(), object_pairs_hook=_unique)
        if _SURROGATE.search(body):  # of an emoji, or half of one, which is no text and cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError:
        raise
    except UnicodeEncodeError:
        raise json.JSONDecodeError("it has half a surrogate pair", "", 0) from None
    except (ValueError, RecursionError) as error:  # no Unicode; a number of thousands of digits
        raise json.JSONDecodeError(str(error), "", 0) from None


def _num_values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _has_more_keys(body: bytes, most: int) -> bool:
    """Whether a body may have more keys than so many: colons behind a string's end, with or without white space."""
    if body.count(b":") <= most:  # nearly always, and a single byte is counted the fastest
        return False
    return sum(body.count(before + b":") for before in (b'"', b" ", b"\t", b"\n", b"\r")) > most


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, whose keys must differ: what stands before this server may read the other value of the two.

    Raises:
        ValueError: naming a key that comes twice; or there are too many.
    """
    found = dict(pairs)
    if len(pairs) > MAX_KEYS_OF_OBJECT:
        raise ValueError(f"an object has more than {MAX_KEYS_OF_OBJECT} keys, the most that are taken")
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {twice[:_SHOWN]!a} twice")
    return found

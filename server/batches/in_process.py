"""A request asked of the app in this process, without a socket: the same routes, checks and errors as HTTP's."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from server.http.api_keys import Caller


async def ask(app: ASGIApp, path: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
    """POST JSON beneath all live requests; the status and body of the answer. Cancelling this ends the request."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        "client": None,
        "server": None,
        "caller": caller,
        "is_background": True,
    }
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    never = asyncio.Event()
    status, parts = 500, bytearray()

    async def receive() -> Message:
        if not requests:
            await never.wait()  # the client does not leave
        return requests.pop()

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.extend(message.get("body", b""))

    with contextlib.suppress(Exception):  # it has been logged, and answered with 500
        await app(scope, receive, send)
    return status, bytes(parts)

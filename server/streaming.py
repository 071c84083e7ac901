"""Server-sent events, and the end of work when a client disconnects. What an event says is the routes'."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from fastapi import Response

from engine.errors import DeepseekServeError
from server.errors import UNEXPECTED, error_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine
    from contextlib import AbstractContextManager

    from starlette.types import Receive, Scope, Send

T = TypeVar("T")
logger = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class EventStream(Response):
    """A response of one `data:` line for each chunk, then `[DONE]`.

    An error after the first byte can no longer be a status; the error is sent as an event, {"error": ...}, then
    `[DONE]`. If the client disconnects, the generator of chunks is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[Any, None], resources: AbstractContextManager[Any]) -> None:
        """`resources` are held while the stream runs."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._resources = chunks, resources

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            await run_until_disconnect(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        async def write(frame: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": frame, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with contextlib.aclosing(self._chunks):
                async for chunk in self._chunks:
                    await write(b"data: %b\n\n" % _encode(chunk))
        except DeepseekServeError as error:
            await write(b"data: %b\n\n" % _encode(error_body(error)[1]))
        except Exception:  # the client must learn that its stream has failed
            logger.exception("a stream failed")
            await write(b"data: %b\n\n" % _encode(error_body(UNEXPECTED)[1]))
        await write(_DONE, more=False)


async def run_until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Run `work` and return its result; if the client disconnects first, cancel `work` and return None."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

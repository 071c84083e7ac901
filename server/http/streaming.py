"""Server-sent events, and the end of work when a client disconnects. What an event says is the routes'."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from fastapi import Response

from engine.errors import DeepseekServeError
from server.http.errors import UNEXPECTED, error_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine
    from contextlib import AbstractContextManager

    from starlette.types import Receive, Scope, Send

T = TypeVar("T")
logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


class Frames(Protocol):
    """How one API writes a stream: the bytes of a chunk, of an error, and of the end."""

    def chunk(self, chunk: Any) -> bytes: ...

    def error(self, error: DeepseekServeError) -> bytes: ...

    @property
    def end(self) -> bytes: ...


class DataFrames:
    """OpenAI's completions: one `data:` line for each chunk, then `[DONE]`; an error is {"error": ...}."""

    end = b"data: [DONE]\n\n"

    def chunk(self, chunk: Any) -> bytes:
        return b"data: %b\n\n" % _encode(chunk)

    def error(self, error: DeepseekServeError) -> bytes:
        return self.chunk(error_body(error)[1])


class NamedFrames:
    """Newer APIs: each chunk is an event named as its `type`, and the last chunk's type says that it is the last."""

    end = b""

    def __init__(self, error_event: Callable[[DeepseekServeError], Any]) -> None:
        """`error_event` gives the chunk that tells of an error."""
        self._error_event = error_event

    def chunk(self, chunk: Any) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (chunk["type"].encode(), _encode(chunk))

    def error(self, error: DeepseekServeError) -> bytes:
        return self.chunk(self._error_event(error))


class EventStream(Response):
    """A response of one event for each chunk.

    An error after the first byte can no longer be a status; the error is sent as an event, and the stream ends as
    others do. If the client disconnects, the generator of chunks is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[Any, None], resources: AbstractContextManager[Any], frames: Frames
    ) -> None:
        """`resources` are held while the stream runs."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._resources, self._frames = chunks, resources, frames

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
                    await write(self._frames.chunk(chunk))
        except DeepseekServeError as error:
            await write(self._frames.error(error))
        except Exception:  # the client must learn that its stream has failed
            logger.exception("a stream failed")
            await write(self._frames.error(UNEXPECTED))
        await write(self._frames.end, more=False)


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

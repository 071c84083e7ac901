"""A server that answers as a test says, to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    Script = Callable[[dict[str, Any]], AsyncGenerator[bytes, None]]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(**body: Any) -> bytes:
    """A server-sent event in a chunk of its own."""
    return chunk(b"data: " + json.dumps(body).encode() + b"\n\n")


def text(piece: str, **choice: Any) -> bytes:
    """A completion's chunk."""
    return event(choices=[{"index": 0, "text": piece, "finish_reason": None, **choice}])


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> bytes:
    """The chunk with which a stream ends."""
    details = None if cached_tokens is None else {"cached_tokens": cached_tokens}
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return event(choices=[], usage={**counts, "prompt_tokens_details": details})


DONE = chunk(b"data: [DONE]\n\n") + END


class ScriptedServer:
    """Use as an async context manager. `script(request body)` yields the answer; ending without END hangs up.

    Attributes:
        requests: the heads and bodies that came.
        most_open: how many requests were open at a time, at most.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._open = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.most_open = self.num_connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in head.splitlines() if line.startswith("Content-Length: ")).split()[1]
        body = json.loads(await reader.readexactly(int(length)))
        self.requests.append((head, body))
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        tail = b""
        try:
            async with contextlib.aclosing(self._script(body)) as pieces:
                async for piece in pieces:
                    tail = (tail + piece)[-len(END) :]
                    writer.write(piece)
                    await writer.drain()
        finally:
            self._open -= 1
        return tail == END

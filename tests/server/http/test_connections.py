"""Limits of connections, with clients that send any bytes at any pace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from server.http.connection_limits import Connections
from server.http.connections import MAX_HEAD_BYTES, MAX_HEADERS, LimitedProtocol
from server.http.proxies import TrustedProxies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = {
    "max_connections": 8,
    "header_timeout": 60.0,
    "body_timeout": 60.0,
    "write_timeout": 60.0,
    "max_body_bytes": 1000,
    "max_file_bytes": 3 << 20,
    "max_bodies_bytes": 1500,
}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """An app behind the protocol that answers with the size of the body, or `/endless`ly."""

    def __init__(self, **limits: float) -> None:
        self.refused: list[str] = []
        self.answered: list[tuple[int, str, int]] = []
        self.connections = Connections(
            **(LIMITS | limits),  # type: ignore[arg-type]
            count_refused=self.refused.append,
            answered=lambda *answer: self.answered.append(answer),
        )
        self.disconnected = asyncio.Event()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/deaf":
            await self.disconnected.wait()
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return
            size += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while scope["path"] == "/endless":
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            if self.connections.num_open == 0:
                self.disconnected.set()
                return
        await send({"type": "http.response.body", "body": str(size).encode()})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        config = uvicorn.Config(self.app, interface="asgi3", log_config=None, ws="none", lifespan="off")
        config.load()
        self.state = uvicorn.server.ServerState()
        make = partial(LimitedProtocol, config, self.state, {}, connections=self.connections)
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.clients: list[asyncio.StreamWriter] = []
        try:
            yield self
        finally:
            self.disconnected.set()
            for writer in self.clients:
                writer.close()
            server.close()
            await until(lambda: self.connections.num_open == 0)
            assert self.connections.bodies_bytes == 0
            assert not self.connections.abortable

    async def connect(self, data: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        writer.write(data)
        return reader, writer


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        if b"content-length" in head:
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(size)
        else:
            body = (await reader.readuntil(b"0\r\n\r\n")).split(b"\r\n")[1]
    return int(head.split(b" ")[1]), body


async def check_refused(reader: asyncio.StreamReader, status: int) -> str:
    """Assert the answer and the end of the connection; returns the message."""
    got, body = await answer(reader)
    assert got == status
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    message: str = json.loads(body)["error"]["message"]
    return message


def post(size: int, body: bytes = b"") -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (size, body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_requests_within_the_limits_are_answered_one_after_another():
    async with Server().running() as server:
        reader, writer = await server.connect(GET)
        assert await answer(reader) == (200, b"0")
        writer.write(post(1000, b"x" * 1000) + GET)  # pipelined
        assert await answer(reader) == (200, b"1000")
        assert await answer(reader) == (200, b"0")
        most = b"".join(b"X-%d: y\r\n" % i for i in range(MAX_HEADERS - 1))
        writer.write(GET[:-2] + most + b"\r\n")
        assert await answer(reader) == (200, b"0")


@pytest.mark.parametrize(
    "data",
    [
        GET[:-2] + b"X: " + b"a" * (MAX_HEAD_BYTES + 1000),
        GET[:-2] + b"X: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 1000),
        GET[:-2] + b"".join(b"X-%d: y\r\n" % i for i in range(MAX_HEADERS)) + b"\r\n",
        post(5, b"hello")[:-7] + b"X: y\r\n" * MAX_HEADERS + b"\r\nhello" + GET,
    ],
)
async def test_headers_beyond_the_limits_are_refused(data):
    async with Server().running() as server:
        reader, _ = await server.connect(data)
        await check_refused(reader, 431)


async def test_a_head_behind_other_requests_is_counted_alone():
    async with Server().running() as server:
        reader, writer = await server.connect(post(900, b"x" * 900) * 60 + GET[:-2] + b"X: " + b"a" * 30_000)
        for _ in range(60):
            assert await answer(reader) == (200, b"900")
        writer.write(b"\r\n\r\n")
        assert await answer(reader) == (200, b"0")


async def test_a_client_that_goes_on_sending_headers_costs_nothing():
    async with Server().running() as server:
        reader, writer = await server.connect(GET[:-2] + b"X: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"a" * (1 << 20))
                await writer.drain()
        await check_refused(reader, 431)


@pytest.mark.parametrize("data", [b"\x00\x01\x02\x03\r\n\r\n", b"GET\r\n\r\n", GET[:-2] + b"bad header\r\n\r\n"])
async def test_what_is_not_http_is_a_400_in_the_shape_of_all_errors(data):
    async with Server().running() as server:
        reader, _ = await server.connect(data)
        await check_refused(reader, 400)


@pytest.mark.parametrize(
    "data",
    [
        post(1001),
        post(1001, b"x" * 1001),
        post(10**30),
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"x" * 600) * 2,
    ],
)
async def test_a_body_beyond_the_limit_is_refused_and_the_client_reads_the_answer(data):
    async with Server().running() as server:
        reader, writer = await server.connect(data)
        writer.write(b"x" * (1 << 20))  # still sent: the answer must come all the same
        status = 400 if b"0" * 30 in data else 413
        assert ("1000 bytes" in await check_refused(reader, status)) == (status == 413)
        assert server.refused == ["invalid" if status == 400 else "too_large"]
        assert [answer[:2] for answer in server.answered] == [(status, "127.0.0.1")]


async def test_a_page_of_an_allowed_site_may_read_a_refusal():
    async with Server().running() as server:
        server.connections.origins = ["https://a.example"]
        for origin, is_allowed in ((b"https://a.example", True), (b"https://b.example", False)):
            reader, _ = await server.connect(post(1001).replace(b"Host", b"Origin: %b\r\nHost" % origin))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 413")
            assert (b"access-control-allow-origin: https://a.example\r\n" in head) == is_allowed


async def test_a_refused_body_is_read_to_its_end_though_its_request_took_none_of_it():
    async with Server(max_body_bytes=100_000, max_bodies_bytes=200_000).running() as server:
        head = b"POST /deaf HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        reader, writer = await server.connect(head + chunk(b"x" * 70_000) * 2)  # uvicorn stops reading behind the first
        writer.write(b"x" * (8 << 20))
        assert "100000 bytes" in await check_refused(reader, 413)
        await until(lambda: writer.transport.get_write_buffer_size() == 0)
        assert not writer.transport.is_closing()


async def test_bodies_under_way_are_bounded_together():
    async with Server().running() as server:
        first, writer = await server.connect(post(1000, b"x" * 900))
        await until(lambda: server.connections.bodies_bytes == 900)
        second, _ = await server.connect(post(1000, b"x" * 900))
        await check_refused(second, 503)
        assert server.refused == ["unavailable"]
        writer.write(b"x" * 100)
        assert await answer(first) == (200, b"1000")
        third, _ = await server.connect(post(1000, b"x" * 1000))
        assert await answer(third) == (200, b"1000")


@pytest.mark.parametrize("path", [b"/v1/files", b"/v1/files/?x"])
async def test_an_upload_has_a_limit_of_its_own_and_time_for_each_of_its_mib(path):
    def start(size):
        return post(size).replace(b"/x", path)

    async with Server(body_timeout=0.5).running() as server:
        reader, writer = await server.connect(start(3 << 20))
        for _ in range(6):
            writer.write(bytes(1 << 19))
            await writer.drain()
            await asyncio.sleep(0.12)  # in all longer than the time for one
        assert server.connections.bodies_bytes == 0
        assert await answer(reader) == (200, b"%d" % (3 << 20))
        reader, _ = await server.connect(start((3 << 20) + 1))
        await check_refused(reader, 413)
        reader, _ = await server.connect(start(3 << 20) + b"x")
        await check_refused(reader, 408)


async def test_a_connection_that_sends_nothing_is_closed():
    async with Server(header_timeout=0.02).running() as server:
        reader, _ = await server.connect()
        assert await reader.read() == b""


@pytest.mark.parametrize("data", [GET[:-2], post(10, b"half"), GET + post(10, b"half")])
async def test_a_request_that_does_not_arrive_is_a_408(data):
    async with Server(header_timeout=0.05, body_timeout=0.05).running() as server:
        reader, _ = await server.connect(data)
        if data.startswith(GET):
            assert await answer(reader) == (200, b"0")
        await check_refused(reader, 408)
        assert server.disconnected.is_set() == (b"half" in data)  # nobody goes on waiting for the body


async def test_a_pace_of_single_bytes_does_not_prolong_the_time():
    async with Server(header_timeout=0.1).running() as server:
        reader, writer = await server.connect(GET[:-2])
        refused = asyncio.create_task(check_refused(reader, 408))
        while not refused.done():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.01)
        await refused


async def test_what_follows_a_body_is_bounded_too():
    async with Server().running() as server:
        head = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"hello")
        reader, writer = await server.connect(head + b"0\r\nX: y\r\n\r\n" + GET)
        assert await answer(reader) == (200, b"5")
        assert await answer(reader) == (200, b"0")
        writer.write(head + b"0\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"X: %b\r\n" % (b"a" * (1 << 16)))
                await writer.drain()
        await check_refused(reader, 431)


async def test_a_slow_reader_is_not_cut_off():
    async with Server(write_timeout=1.0).running() as server:
        reader, _ = await server.connect(GET.replace(b"/x", b"/endless"))
        for _ in range(150):  # far behind, and never done; the system's own buffers hold some MB
            await reader.readexactly(50_000)
            await asyncio.sleep(0.01)
        assert not server.disconnected.is_set()


async def test_many_connections_at_once_are_within_the_limit():
    async with Server(max_connections=3).running() as server:
        await asyncio.gather(*(server.connect(post(5, b"h")) for _ in range(50)))
        await until(lambda: server.connections.num_open == 3)
        reader, _ = await server.connect(GET)  # they have no whole request, so that one of them makes room
        assert await answer(reader) == (200, b"0")


async def test_a_reader_that_stops_is_cut_off():
    async with Server(write_timeout=0.05).running() as server:
        await server.connect(GET.replace(b"/x", b"/endless"))
        async with asyncio.timeout(10):
            await server.disconnected.wait()


async def test_a_reader_that_was_cut_off_gets_a_reset():
    """The system would else keep what the client has not read for as long as the client likes."""
    async with Server(write_timeout=0.05).running() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(GET.replace(b"/x", b"/endless"))
            async with asyncio.timeout(10):
                await server.disconnected.wait()
            with pytest.raises(ConnectionResetError):
                list(iter(partial(client.recv, 1 << 20), b""))


async def test_an_address_has_so_many_connections():
    async with Server(max_client_connections=2).running() as server:
        kept = [await server.connect() for _ in range(2)]
        await until(lambda: server.connections.num_open == 2)
        reader, writer = await server.connect(GET)
        got = await reader.readuntil(b"}}")
        assert got.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in got.lower()
        assert b"This address has 2 connections" in got
        writer.close()
        assert server.refused == ["rate_limited"]
        for reader, writer in kept:
            writer.write(GET)
            assert await answer(reader) == (200, b"0")
        kept[0][1].close()
        await until(lambda: server.connections.num_of["127.0.0.1"] == 1)
        reader, _ = await server.connect(GET)
        assert await answer(reader) == (200, b"0")


async def test_a_flood_from_one_address_holds_no_more_than_twice_its_connections():
    async with Server(max_connections=100, max_client_connections=3).running() as server:
        for _ in range(200):
            await server.connect()
        await until(lambda: server.connections.num_open <= 6)
        assert server.refused == ["rate_limited"] * 197


async def test_a_trusted_proxys_connections_are_no_clients():
    limits = {"max_client_connections": 1, "proxies": TrustedProxies.parse("127.0.0.0/8")}
    async with Server(**limits).running() as server:
        for reader, _ in [await server.connect(GET) for _ in range(5)]:
            assert await answer(reader) == (200, b"0")


async def test_a_new_connection_takes_the_place_of_the_one_idle_longest():
    async with Server(max_connections=3).running() as server:
        busy, _ = await server.connect(GET.replace(b"/x", b"/endless"))
        await busy.readexactly(100)
        answered, _ = await server.connect(GET)
        assert await answer(answered) == (200, b"0")
        silent, _ = await server.connect(post(5, b"h"))
        await until(lambda: len(server.connections.abortable) == 2)
        for _ in range(2):  # first the one that has had its answer, then the one with half a request
            reader, _ = await server.connect(GET)
            assert await answer(reader) == (200, b"0")
        for reader in (answered, silent):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        await busy.readexactly(100_000)


async def test_where_all_connections_are_busy_a_new_one_is_refused():
    async with Server(max_connections=2).running() as server:
        busy = [await server.connect(GET.replace(b"/x", b"/endless")) for _ in range(2)]
        for reader, _ in busy:
            await reader.readexactly(100)
        reader, _ = await server.connect(GET)
        assert "2 connections" in await check_refused(reader, 503)
        for reader, _ in busy:
            await reader.readexactly(100_000)

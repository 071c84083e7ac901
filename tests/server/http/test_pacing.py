"""How fast requests begin: turns of the event loop, pipelined requests, and connections whose answer came early."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from server.http import connections, pacing
from server.http.pacing import Lane
from tests.server.http.test_connections import GET, Server, answer, chunk, post, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE = GET.replace(b"/x", b"/livez")


async def test_a_turn_takes_so_many_and_the_others_take_turns() -> None:
    lane, order = Lane(2), []

    def want(name: str, pieces: int) -> Any:
        def go_on() -> None:
            nonlocal pieces
            order.append(name)
            pieces -= 1
            while pieces:
                if not lane.take(go_on):
                    return
                order.append(name)
                pieces -= 1

        return go_on

    for name, pieces in (("a", 3), ("b", 1), ("c", 2)):
        if lane.take(go_on := want(name, pieces)):
            go_on()
    assert order == ["a", "a"]
    await asyncio.sleep(0)
    assert order == ["a", "a", "a", "b"]  # the one that has waited longest first
    await asyncio.sleep(0)
    assert order == ["a", "a", "a", "b", "c", "c"]
    for _ in range(3):
        await asyncio.sleep(0)
    assert lane.take(lambda: None)  # nothing is left, and turns go by without a call


class Counted(Server):
    """Counts the requests that are being answered; `/hold` is not answered until it is told, `/listen` never."""

    def __init__(self, **limits: float) -> None:
        super().__init__(**limits)
        self.num_begun = 0
        self.held, self.left = asyncio.Event(), asyncio.Event()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_begun += 1
        if scope["path"] == "/hold":
            await self.held.wait()
        while scope["path"] == "/listen":
            if (await receive())["type"] == "http.disconnect":
                self.left.set()
                return
        if scope["path"] == "/early":
            body = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 401, "headers": body})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await super().app(scope, receive, send)


async def test_of_a_flood_of_pipelined_requests_few_are_begun_and_all_are_answered() -> None:
    async with Counted().running() as server:
        reader, _ = await server.connect(GET.replace(b"/x", b"/hold") + GET * 5000)
        await until(lambda: server.num_begun == 1)
        [connection] = server.connections.abortable or [None]
        assert connection is None  # its request is whole
        assert await answer((await server.connect(PROBE))[0]) == (200, b"0")
        assert server.num_begun == 2
        server.held.set()
        for _ in range(5001):
            assert await answer(reader) == (200, b"0")


async def test_a_client_that_sends_ahead_is_read_no_further() -> None:
    async with Counted().running() as server:
        _, writer = await server.connect(GET.replace(b"/x", b"/hold"))
        await until(lambda: server.num_begun == 1)
        writer.transport.set_write_buffer_limits(0)
        writer.write(GET * 400_000)  # 11 MB, more than sockets keep
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await writer.drain()
        writer.transport.abort()
        await asyncio.sleep(0)
        server.held.set()


async def test_a_client_that_leaves_ends_its_request_with_others_behind_it() -> None:
    async with Counted().running() as server:
        _, writer = await server.connect(GET.replace(b"/x", b"/listen") + GET)
        await until(lambda: server.num_begun == 1)
        writer.transport.abort()
        await until(server.left.is_set)
        assert server.num_begun == 1


@pytest.mark.parametrize("num_sent", [0, 600])
async def test_the_time_for_a_body_begins_behind_the_answer_to_the_request_before(num_sent: int) -> None:
    async with Counted(body_timeout=0.2).running() as server:
        reader, _ = await server.connect(GET.replace(b"/x", b"/hold") + post(600, b"x" * num_sent))
        await asyncio.sleep(0.4)
        server.held.set()
        assert await answer(reader) == (200, b"0")
        status, body = await answer(reader)
        assert (status, body) == (200, b"600") if num_sent else status == 408


async def test_the_time_for_a_head_begins_behind_the_answer_to_the_request_before() -> None:
    async with Counted(header_timeout=0.2).running() as server:
        reader, _ = await server.connect(GET.replace(b"/x", b"/hold") + GET + GET[:-2])
        await asyncio.sleep(0.4)
        server.held.set()
        assert [await answer(reader) for _ in range(2)] == [(200, b"0")] * 2
        assert (await answer(reader))[0] == 408


async def test_no_http_behind_requests_ends_them_and_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LINGER", 0.05)
    async with Counted().running() as server:
        reader, _ = await server.connect(GET.replace(b"/x", b"/listen") + GET + b"\0\r\n\r\n")
        assert (await answer(reader))[0] == 400
        await until(lambda: server.connections.num_open == 0)
        assert server.left.is_set()
        assert server.num_begun == 1


UPGRADE = b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAI\r\n"


@pytest.mark.parametrize("is_at_once", [True, False])
@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_behind_a_wish_for_another_protocol_is_no_request(is_at_once: bool, is_chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % (20 * len(GET))
    head = b"POST /x HTTP/1.1\r\nHost: x\r\n" + framing + UPGRADE + b"\r\n"
    rest = (chunk(GET * 20) + chunk(b"") if is_chunked else GET * 20) + GET + post(3, b"abc")
    async with Counted().running() as server:
        reader, writer = await server.connect(head + rest if is_at_once else head)
        if not is_at_once:
            await until(lambda: server.num_begun == 1)
            writer.write(rest)
        assert [await answer(reader) for _ in range(3)] == [(200, b"%d" % (20 * len(GET))), (200, b"0"), (200, b"3")]
        assert server.num_begun == 3


async def test_requests_behind_a_wish_for_another_protocol_are_answered() -> None:
    async with Counted().running() as server:
        wishes = [GET[:-4] + UPGRADE + more + b"\r\n" for more in (b"", b"Content-Length: 0\r\n")]
        reader, _ = await server.connect(wishes[0] + GET + wishes[1] + GET)
        assert [await answer(reader) for _ in range(4)] == [(200, b"0")] * 4


@contextlib.contextmanager
def no_turns(server: Server) -> Iterator[None]:
    """The event loop goes on, and no turn begins."""
    with pytest.MonkeyPatch.context() as frozen:
        frozen.setattr(Lane, "_turn", lambda _: None)
        yield
    server.connections.pace.requests._turn()


async def test_probes_do_not_wait_for_requests() -> None:
    async with Counted(max_connections=100).running() as server:
        with no_turns(server):
            readers = [(await server.connect(GET))[0] for _ in range(pacing._PER_TURN + 3)]
            for reader in readers[: pacing._PER_TURN]:
                assert await answer(reader) == (200, b"0")
            assert await answer((await server.connect(PROBE))[0]) == (200, b"0")
            assert server.num_begun == pacing._PER_TURN + 1
        for reader in readers[pacing._PER_TURN :]:
            assert await answer(reader) == (200, b"0")


async def test_bytes_that_wait_for_a_turn_keep_their_connection() -> None:
    async with Counted(max_connections=pacing._PER_TURN + 1).running() as server:
        with no_turns(server):
            first = [await server.connect(GET) for _ in range(pacing._PER_TURN)]
            for reader, _ in first:
                assert await answer(reader) == (200, b"0")
            waiting, _ = await server.connect(GET)
            await until(lambda: any(connection.is_waiting for connection in server.connections.abortable))
            for reader, _ in first:  # each new connection takes the place of one that is idle
                await server.connect()
                assert await reader.read() == b""
        assert await answer(waiting) == (200, b"0")


async def test_what_waits_for_a_turn_as_the_server_ends_is_answered() -> None:
    async with Counted(max_connections=100).running() as server:
        with no_turns(server):
            readers = [(await server.connect(GET))[0] for _ in range(pacing._PER_TURN + 1)]
            for reader in readers[:-1]:
                assert await answer(reader) == (200, b"0")
            await until(lambda: any(connection.is_waiting for connection in uvicorn_connections(server)))
            for connection in uvicorn_connections(server):
                connection.shutdown()
            for reader in readers[:-1]:
                assert await reader.read() == b""
        assert await answer(readers[-1]) == (200, b"0")
        assert await readers[-1].read() == b""


@pytest.mark.parametrize("body", [b"x" * 600, b"x"])
async def test_a_connection_whose_answer_did_not_wait_for_the_body_rests_behind_it(body: bytes) -> None:
    async with Counted().running() as server:
        reader, writer = await server.connect(post(len(body)).replace(b"/x", b"/early"))
        assert await answer(reader) == (401, b"no")
        writer.write(body)
        await until(lambda: server.connections.bodies_bytes == 0)
        writer.write(GET)
        assert await answer(reader) == (200, b"0")
        writer.write(post(len(body)).replace(b"/x", b"/early"))
        assert await answer(reader) == (401, b"no")
        [connection] = uvicorn_connections(server)
        writer.write(body)
        await until(lambda: connection.timeout_keep_alive_task and connection in server.connections.abortable)


async def test_an_answered_body_beyond_the_limit_gets_no_second_answer() -> None:
    async with Counted().running() as server:
        head = b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        reader, writer = await server.connect(head)
        assert await answer(reader) == (401, b"no")
        writer.write(chunk(b"x" * 2000))
        async with asyncio.timeout(10):
            assert await reader.read() == b""


async def test_large_bodies_want_one_turn() -> None:
    async with Counted(max_body_bytes=3 << 20, max_bodies_bytes=4 << 20).running() as server:
        with no_turns(server):
            reader, _ = await server.connect(post(2 << 20, b"x" * (2 << 20)))
            assert await answer(reader) == (200, str(2 << 20).encode())


def uvicorn_connections(server: Server) -> list[Any]:
    return list(server.state.connections)

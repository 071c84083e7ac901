"""The port that is served, and what is said once it is."""

import asyncio
import socket

import pytest

from server.config import ServerConfig
from server.serve import _first_request, _listen


async def test_small_writes_are_not_held_back() -> None:
    """Nagle's algorithm would keep the end of each answer, and a token now and then, until the client's delayed ACK."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = _listen(ServerConfig(port=0))
    async with await asyncio.start_server(accept, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await asyncio.wait_for(accepted, 10)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("tasks", "chats", "path"),
    [
        (("generate", "embed"), True, "/v1/chat/completions"),
        (("generate", "embed", "classify", "value"), False, "/v1/completions"),
        (("embed", "classify"), True, "/v1/classify"),
    ],
)
def test_the_request_to_begin_with_is_one_that_the_model_answers(tasks, chats, path) -> None:
    assert _first_request(tasks, chats=chats)[0] == path


def test_by_default_only_this_machine_can_connect() -> None:
    with _listen(ServerConfig(port=0)) as main, _listen(ServerConfig(admin_port=0), is_admin=True) as admin:
        assert [listener.getsockname()[0] for listener in (main, admin)] == ["127.0.0.1", "127.0.0.1"]

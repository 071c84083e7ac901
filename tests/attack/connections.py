"""Attacks beneath HTTP, and by many small requests: name -> what one of the attacking threads does again and again."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import time
from collections.abc import Callable

Attack = Callable[[str, int], object]  # of a host and a port; what it returns is counted
CONNECTIONS: dict[str, Attack] = {}
_TIMEOUT = 60.0  # seconds


def _attack(function: Attack) -> Attack:
    CONNECTIONS[function.__name__.replace("_", " ")] = function
    return function


def ask(host: str, port: int, method: str, path: str, body: bytes | None = None) -> object:
    """Return the status of one request on a connection of its own, or the name of the error."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def _send(host: str, port: int, *pieces: bytes) -> str:
    """Return the first line of what is answered to these bytes, or the name of the error."""
    with contextlib.closing(socket.create_connection((host, port), _TIMEOUT)) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            return connection.recv(12).decode("latin-1")
        except OSError as error:
            return type(error).__name__


@_attack
def endless_headers(host: str, port: int) -> object:
    return _send(host, port, b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", *[b"a" * 65536] * 800)


@_attack
def very_many_headers(host: str, port: int) -> object:
    headers = b"".join(b"X-%d: a\r\n" % i for i in range(50_000))
    return _send(host, port, b"GET /health HTTP/1.1\r\nHost: x\r\n" + headers)


@_attack
def long_queries(host: str, port: int) -> object:
    return ask(host, port, "GET", "/v1/files?" + "&".join(f"a{i}" for i in range(5_000)))


@_attack
def long_paths(host: str, port: int) -> object:
    return ask(host, port, "GET", "/v1/models/" + "a/" * 15_000)


@_attack
def the_tokenizer(host: str, port: int) -> object:
    return ask(host, port, "GET", "/tokenizer_info")


@_attack
def the_reference(host: str, port: int) -> object:
    return ask(host, port, "GET", "/openapi.json")


@_attack
def small_requests(host: str, port: int) -> object:
    return ask(host, port, "POST", "/v1/completions", b'{"prompt": "a", "max_tokens": 1}')


@_attack
def broken_requests(host: str, port: int) -> object:
    return ask(host, port, "POST", "/v1/completions", b"{")


@_attack
def ever_new_schemas(host: str, port: int) -> object:
    names = {f"p{random.random()}": {"type": "string", "pattern": f"^[a-z]{{1,{i + 1}}}$"} for i in range(50)}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": names}}}
    body = {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "response_format": form}
    return ask(host, port, "POST", "/v1/chat/completions", json.dumps(body).encode())


@_attack
def halves_of_bodies(host: str, port: int) -> object:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4000001\r\n\r\n"
    return _send(host, port, head, b"a" * 4_000_000)


@_attack
def files_of_many_lines(host: str, port: int) -> object:
    """And a batch of each: every line is looked at."""
    form = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    form += b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form += b"\n" * 4_000_000 + b"1\n" * 2_000_000 + b"\r\n--x--\r\n"
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/files", form, {"Content-Type": "multipart/form-data; boundary=x"})
        file_id = json.loads(connection.getresponse().read()).get("id")
    batch = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    return ask(host, port, "POST", "/v1/batches", json.dumps(batch).encode())


@_attack
def connections_that_say_nothing(host: str, port: int) -> object:
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(contextlib.closing(socket.create_connection((host, port), _TIMEOUT)))
        time.sleep(0.5)
    return "closed"

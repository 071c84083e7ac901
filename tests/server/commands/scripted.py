"""A server of canned answers, for the commands that ask a URL."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Scripted:
    """What it is asked, and what it answers with: a status and chunks, or an error's message."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []
        self.status = 200
        self.error = "no"
        self.chunks: Sequence[dict[str, Any]] = ()
        self.is_whole = True  # whether [DONE] comes


@contextlib.contextmanager
def scripted() -> Iterator[Scripted]:
    """A server on a free port of the loopback, until the `with` statement ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"object": "list", "data": [{"id": "scripted"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, self.headers["Authorization"], body))
            if server.status != 200:
                self._send({"error": {"message": server.error}}, server.status)
                return
            self.send_response(200)
            self.end_headers()
            for chunk in server.chunks:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if server.is_whole:
                self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, body: dict[str, Any], status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Scripted(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()

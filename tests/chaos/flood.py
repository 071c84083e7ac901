"""A process of its own that sends completions as fast as it is told, and prints what it saw as JSON.

python -m tests.chaos.flood PORT MAX_TOKENS SECONDS clients=N    # closed loop: each client waits for its answer
python -m tests.chaos.flood PORT MAX_TOKENS SECONDS rate=N       # open loop: so many a second, whatever is answered

It shares the machine with the server, so it is plain sockets and some 50 microseconds a request. In an open loop a
request's clock starts when it is due. The first seconds count for nothing but refusals and errors.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field

_WARM_UP = 0.2  # of the time
_PATIENCE = 30.0  # seconds for the last answers
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_LENGTH = re.compile(rb"content-length: (\d+)")


@dataclass
class Report:
    """What was seen.

    Attributes:
        tokens: of answers that ended in `seconds`, which begin after the warm-up.
        answers: by status, or by what happened; sent is how many requests.
        refusals: seconds of each answer with status 429 or 503.
        late: seconds that this process was behind at worst; cpu is the share of a core that it used.
    """

    seconds: float = 0.0
    tokens: int = 0
    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    refusals: list[float] = field(default_factory=list)
    late: float = 0.0
    cpu: float = 0.0


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.received, self.due, self.is_new = b"", 0.0, True


class Flood:
    """One load. Use once."""

    def __init__(self, port: int, max_tokens: int, seconds: float, clients: int = 0, rate: float = 0.0) -> None:
        """Either `clients` or `rate` is not 0."""
        self._port, self._max_tokens, self._clients, self._rate = port, max_tokens, clients, rate
        self._began = time.monotonic()
        self._counts_from, self._ends = self._began + _WARM_UP * seconds, self._began + seconds
        self._selector = selectors.EpollSelector()
        self._idle: deque[_Connection] = deque()
        self._num_waiting = 0
        self.report = Report(seconds=seconds * (1 - _WARM_UP))

    def run(self) -> Report:
        """Send, and wait for the last answers."""
        cpu = time.process_time()
        for _ in range(self._clients):
            self._send(time.monotonic())
        while (now := time.monotonic()) < self._ends or (self._num_waiting and now < self._ends + _PATIENCE):
            if self._rate and now < self._ends:
                self._send_due(now)
            wait = min(0.002, 1 / self._rate) if self._rate and now < self._ends else 0.1
            for key, events in self._selector.select(wait):
                self._serve(key.data, events)
        self.report.answers["none"] += self._num_waiting
        self.report.cpu = (time.process_time() - cpu) / (time.monotonic() - self._began)
        return self.report

    def _send_due(self, now: float) -> None:
        num_due = int((now - self._began) * self._rate) - self.report.sent
        for _ in range(num_due):
            due = self._began + self.report.sent / self._rate
            self.report.late = max(self.report.late, now - due)
            self._send(due)

    def _send(self, due: float) -> None:
        self.report.sent += 1
        self._num_waiting += 1
        if self._idle:
            connection = self._idle.pop()
            connection.due, connection.is_new = due, False
            self._write(connection)
        else:
            self._connect(due)

    def _connect(self, due: float) -> None:
        connection = _Connection(self._port)
        connection.due = due
        self._selector.register(connection.socket, selectors.EVENT_WRITE, connection)  # once it is connected

    def _write(self, connection: _Connection) -> None:
        prompt = [(self.report.sent * 7919 + i * i) % 250 for i in range(16)]  # which no prefix cache knows
        body = b'{"prompt":%b,"max_tokens":%d,"ignore_eos":true,"temperature":0}'
        body %= str(prompt).encode(), self._max_tokens
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        with contextlib.suppress(OSError):  # reading says so too
            connection.socket.send(head % len(body) + body)

    def _serve(self, connection: _Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            self._write(connection)
            return
        try:
            data = connection.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(connection, type(error).__name__)
            return
        connection.received += data
        if not data:
            self._lose(connection, "closed")
        elif (end := connection.received.find(b"\r\n\r\n")) > 0:
            head = connection.received[:end].lower()
            length = _LENGTH.search(head)
            if length is not None and len(connection.received) >= end + 4 + int(length[1]):
                self._answered(connection, head)

    def _answered(self, connection: _Connection, head: bytes) -> None:
        now, status, answer = time.monotonic(), head[9:12].decode(), connection.received
        connection.received = b""
        self._num_waiting -= 1
        self.report.answers[status] += 1
        if status in ("429", "503"):
            self.report.refusals.append(now - connection.due)
        elif self._counts_from <= now < self._ends and (tokens := _TOKENS.search(answer)):
            self.report.tokens += int(tokens[1])
        if b"connection: close" in head:
            self._close(connection)
        else:
            self._idle.append(connection)
        if self._clients and now < self._ends:
            self._send(now)

    def _lose(self, connection: _Connection, how: str) -> None:
        """The connection ended; a request that was sent as the server closed an idle connection is sent again."""
        self._close(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        elif not connection.is_new and not connection.received:
            self._connect(connection.due)
        else:
            self._num_waiting -= 1
            self.report.answers[how] += 1

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()


def main(port: str, max_tokens: str, seconds: str, load: str) -> None:
    """Print a Report."""
    name, _, number = load.partition("=")
    options = {"clients": int(number)} if name == "clients" else {"rate": float(number)}
    report = Flood(int(port), int(max_tokens), float(seconds), **options).run()  # type: ignore[arg-type]
    print(json.dumps(vars(report)))


if __name__ == "__main__":
    main(*sys.argv[1:])

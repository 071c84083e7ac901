"""Streams that run beside whatever a test does to the server: their tokens must be those of a quiet run."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 30.0  # seconds for a round of all canaries
BODIES: list[dict[str, Any]] = [
    {"prompt": "The quick brown fox", "temperature": 0},
    {"prompt": "jumps over", "temperature": 1.5, "seed": 7},
    {"prompt": "the lazy dog" * 9, "temperature": 1, "seed": 8, "top_p": 0.9, "frequency_penalty": 0.5},
]


class Canaries:
    """One thread for each body, which streams it again and again."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        """Learn the tokens of a quiet run."""
        self._url, self._headers = url, headers
        with self._http() as http:
            self._expected = [self._stream(http, body) for body in BODIES]
        self._ended = [0] * len(BODIES)
        self._mistakes: list[str] = []
        self._is_over = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._sing, args=[i], daemon=True) for i in range(len(BODIES))]

    def __enter__(self) -> Canaries:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """All streams that overlap the body of the `with` statement must have the right tokens."""
        yield
        deadline = time.monotonic() + _PATIENCE
        with self._changed:
            wanted = [ended + 1 for ended in self._ended]  # the streams that are running now
            while not self._mistakes and any(e < w for e, w in zip(self._ended, wanted, strict=True)):
                assert self._changed.wait(deadline - time.monotonic()), "a canary hangs"
        assert self._mistakes == []

    def _sing(self, i: int) -> None:
        with self._http() as http:
            while not self._is_over.is_set():
                try:
                    tokens = self._stream(http, BODIES[i])
                    mistake = None if tokens == self._expected[i] else f"{BODIES[i]} gave {tokens}"
                except Exception as error:  # noqa: BLE001  # whatever it is, it is the test's to report
                    mistake = f"{BODIES[i]} failed: {error!r}"
                with self._changed:
                    self._ended[i] += 1
                    self._mistakes += [mistake] if mistake else []
                    self._changed.notify_all()
                if mistake:
                    return

    def _http(self) -> httpx.Client:
        return httpx.Client(base_url=self._url, headers=self._headers, timeout=60, trust_env=False)

    @staticmethod
    def _stream(http: httpx.Client, body: dict[str, Any]) -> list[int]:
        tokens: list[int] = []
        body = body | {"stream": True, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                if line and line != "data: [DONE]":
                    tokens += json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"]
        return tokens

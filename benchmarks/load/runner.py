"""Sends requests, at their times or with limited concurrency, and collects the answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from benchmarks.load.answer import Answer, AnswerReader
from benchmarks.load.http import ConnectionLostError, Pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.load.workload import Request, Source


@dataclass(frozen=True)
class Endpoint:
    """The server, and the settings that all requests share.

    Attributes:
        url: the server's address, with or without /v1.
        chat: /v1/chat/completions instead of /v1/completions.
        body: parameters of every request, beside its prompt and max_tokens.
        timeout: seconds after which an answer is given up.
    """

    url: str
    model: str | None = None
    chat: bool = False
    body: dict[str, Any] = field(default_factory=dict)
    timeout: float = 600.0

    def message(self, request: Request) -> bytes:
        """The whole HTTP request."""
        parts = urlsplit(self.url)
        path = (
            parts.path.rstrip("/").removesuffix("/v1") + "/v1/" + ("chat/completions" if self.chat else "completions")
        )
        body = {**self.body, **self._prompt(request), "max_tokens": request.max_tokens, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self.model is not None:
            body["model"] = self.model
        if request.priority:
            body["priority"] = request.priority
        encoded = msgspec.json.encode(body)
        head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        if request.key:
            head += f"Authorization: Bearer {request.key}\r\n"
        return f"{head}Content-Length: {len(encoded)}\r\n\r\n".encode() + encoded

    def _prompt(self, request: Request) -> dict[str, Any]:
        prefix, prompt = request.prefix, request.prompt
        if self.chat:
            messages = [{"role": "system", "content": prefix}] if prefix else []
            return {"messages": [*messages, {"role": "user", "content": prompt}]}
        if isinstance(prompt, list):
            return {"prompt": [*prefix, *prompt]}
        return {"prompt": f"{prefix} {prompt}" if prefix else prompt}


@dataclass
class Run:
    """The results of a load.

    Attributes:
        seconds: from the first request's time to the last answer's end.
        cpu_seconds: what this client itself used of the processor.
    """

    answers: list[Answer]
    seconds: float
    cpu_seconds: float


async def run(endpoint: Endpoint, sources: Sequence[Source]) -> Run:
    """Send all requests. A failed request does not end the run."""
    pool = Pool(endpoint.url)
    prepared = [([(request, endpoint.message(request)) for request in s.requests], s.concurrency) for s in sources]
    answers: list[Answer] = []
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        async with asyncio.TaskGroup() as tasks:
            for requests, concurrency in prepared:
                if concurrency is None:
                    tasks.create_task(_open_loop(pool, endpoint, requests, start, answers))
                    continue
                queue = iter(requests)
                for _ in range(concurrency):
                    tasks.create_task(_closed_loop(pool, endpoint, queue, answers))
    finally:
        pool.close()
    end = max((answer.end for answer in answers), default=start)
    return Run(answers, end - start, time.process_time() - cpu_start)


async def _closed_loop(
    pool: Pool, endpoint: Endpoint, queue: Iterator[tuple[Request, bytes]], answers: list[Answer]
) -> None:
    for request, message in queue:
        answers.append(await _send(pool, endpoint, request, message, time.perf_counter()))


async def _open_loop(
    pool: Pool, endpoint: Endpoint, requests: list[tuple[Request, bytes]], start: float, answers: list[Answer]
) -> None:
    async def one(request: Request, message: bytes, due: float) -> None:
        answers.append(await _send(pool, endpoint, request, message, due))

    async with asyncio.TaskGroup() as tasks:
        for request, message in requests:
            due = start + (request.due or 0.0)
            await asyncio.sleep(due - time.perf_counter())
            tasks.create_task(one(request, message, due))


async def _send(pool: Pool, endpoint: Endpoint, request: Request, message: bytes, due: float) -> Answer:
    """Send one request and return its answer, with or without error; times count from `due`."""
    answer = Answer(key=request.key, start=due)
    reader = AnswerReader(answer)
    try:
        async with asyncio.timeout(endpoint.timeout), pool.connection() as connection:
            answer.lag = time.perf_counter() - due
            try:
                await connection.post(message, reader.take)
            finally:
                answer.status = connection.status
            retry_after = connection.headers.get("retry-after", "")
            if retry_after.isdigit():  # else a date, or missing
                answer.retry_after = float(retry_after)
        reader.finish()
    except (OSError, ConnectionLostError, TimeoutError) as error:
        answer.error = "broken off" if answer.status else type(error).__name__
        if isinstance(error, TimeoutError):
            answer.error = "timeout"
    answer.end = time.perf_counter()
    return answer

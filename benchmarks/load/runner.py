"""Sends requests, at their times or with limited concurrency, and collects the answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from tqdm import tqdm

from benchmarks.load.answer import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.load.workload import Request, Source

_MAX_LINE = 1 << 20  # bytes of one event


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

    @property
    def route(self) -> str:
        """The address that requests go to."""
        base = self.url.rstrip("/").removesuffix("/v1")
        return f"{base}/v1/{'chat/completions' if self.chat else 'completions'}"

    def encode(self, request: Request) -> bytes:
        """A request's body."""
        body = {**self.body, **self._prompt(request), "max_tokens": request.max_tokens, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self.model is not None:
            body["model"] = self.model
        if request.priority:
            body["priority"] = request.priority
        return msgspec.json.encode(body)

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
    prepared = [([(request, endpoint.encode(request)) for request in s.requests], s.concurrency) for s in sources]
    connector, total = aiohttp.TCPConnector(limit=0), sum(len(source.requests) for source in sources)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=_MAX_LINE) as session:
        bar = tqdm(total=total, desc="requests", unit="request", leave=False, disable=None)
        load = _Load(session, endpoint, bar)
        start, cpu_start = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for requests, concurrency in prepared:
                if concurrency is None:
                    tasks.create_task(load.open_loop(requests, start))
                    continue
                queue = iter(requests)
                for _ in range(concurrency):
                    tasks.create_task(load.closed_loop(queue))
        cpu_seconds = time.process_time() - cpu_start
    bar.close()
    end = max((answer.end for answer in load.answers), default=start)
    return Run(load.answers, end - start, cpu_seconds)


class _Load:
    """The answers of a run so far."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint, bar: tqdm[Any]) -> None:
        self._session, self._endpoint, self._bar = session, endpoint, bar
        self.answers: list[Answer] = []

    async def closed_loop(self, queue: Iterator[tuple[Request, bytes]]) -> None:
        for request, body in queue:
            await self._send(request, body, time.perf_counter())

    async def open_loop(self, requests: list[tuple[Request, bytes]], start: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for request, body in requests:
                due = start + (request.due or 0.0)
                await asyncio.sleep(due - time.perf_counter())
                tasks.create_task(self._send(request, body, due))

    async def _send(self, request: Request, body: bytes, due: float) -> None:
        """Send one request and keep its answer, with or without error; times count from `due`."""
        answer = Answer(key=request.key, start=due, lag=time.perf_counter() - due)
        headers = {"Content-Type": "application/json"}
        if request.key:
            headers["Authorization"] = f"Bearer {request.key}"
        post = self._session.post(self._endpoint.route, data=body, headers=headers, timeout=aiohttp.ClientTimeout())
        try:
            async with asyncio.timeout(self._endpoint.timeout), post as response:
                answer.status = response.status
                retry_after = response.headers.get("Retry-After", "")
                answer.retry_after = float(retry_after) if retry_after.isdigit() else None  # else a date, or missing
                async for line in response.content:
                    answer.take(time.perf_counter(), line)
            answer.finish()
        except TimeoutError:
            answer.error = "timeout"
        except (OSError, aiohttp.ClientError) as error:
            answer.error = "broken off" if answer.status else type(getattr(error, "os_error", error)).__name__
        answer.end = time.perf_counter()
        self.answers.append(answer)
        self._bar.update()

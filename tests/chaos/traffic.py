"""Clients of many kinds, well-behaved and not, each at it again and again until told to end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.chaos.kinds import KINDS
from tests.robustness.canary import BODIES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.kinds import Kind
    from tests.chaos.verdict import Observations

    _Client = Callable[[random.Random], Awaitable[None]]

_FLOOD = 3.0  # seconds
_FLOODING = 8  # clients
_PATIENCE = 45.0  # seconds for an answer, which a restart of the engine may delay
_BATCH_PATIENCE = 180.0  # likewise, behind all other requests
_DOWN = 503
BAD: list[bytes] = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5000, b'{"prompt": ""}', b'{"prompt": 5}',
    b'{"prompt": "a", "n": 1e9}', b'{"prompt": [999999999]}', b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "nonsense": 1}', b'{"prompt": "a", "max_tokens": -1}', b'{"prompt": "' + b"a" * 3_000_000 + b'"}',
    b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}", b'{"prompt": [' + b"1," * 300_000 + b"1]}",
    b'{"prompt": "a", "response_format": {"type": "wizard"}}',
    b'{"prompt": "a", "stop": [' + b'"a",' * 50_000 + b'"a"]}',
]  # fmt: skip


class Traffic:
    """All clients of a run; what they see goes into the observations.

    Attributes:
        excuses: called with the time at which a request began; whether a 500 or a broken stream since then is ours.
    """

    def __init__(self, url: str, seen: Observations, seed: int, excuses: Callable[[float], bool]) -> None:
        self._url, self._seen, self._seed, self._excuses = url, seen, seed, excuses
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._expected: list[list[int]] = []
        self._known: list[Kind] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.num_requests = 0
        self._is_over = False

    async def __aenter__(self) -> Traffic:
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        self._http = aiohttp.ClientSession(self._url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        self._expected = [(await self._stream(body | _CANARY))[0] for body in BODIES]
        self._known = [kind for kind in KINDS if await self._knows(kind)]
        return self

    async def _knows(self, kind: Kind) -> bool:
        """Whether the model can do what this kind of request asks for."""
        path, body = kind(random.Random(self._seed))
        async with self._http.post(path, json=body) as response:
            if response.status != 200:
                text = f"{kind.__name__}: {(await response.json())['error']['message']}"
                self._seen.skipped.append(text[:100])
            return response.status == 200

    async def __aexit__(self, *_: object) -> None:
        await self.end()
        await self._http.close()

    def begin(self, clients: int = 1) -> None:
        """Start so many clients of each kind."""
        for number, kind in enumerate(self._kinds * clients):
            rng = random.Random(f"{self._seed} {number}")
            self._tasks.append(asyncio.create_task(self._again(kind, rng, lambda: self._is_over)))

    async def flood(self, rng: random.Random) -> str:
        """Have many clients of one kind for a while; returns which."""
        kind, ends = rng.choice(self._kinds), time.monotonic() + _FLOOD
        seeds = [random.Random(rng.random()) for _ in range(_FLOODING)]
        await asyncio.gather(*[self._again(kind, own, lambda: time.monotonic() > ends) for own in seeds])
        return kind.__name__.strip("_")

    @property
    def _kinds(self) -> tuple[_Client, ...]:
        asking = tuple(functools.partial(self._ask_for, kind) for kind in self._known)
        for kind, client in zip(self._known, asking, strict=True):
            functools.update_wrapper(client, kind)
        others = (self._streams, self._canary, self._leaves, self._gives_up, self._bad, self._late, self._batch)
        return (*asking, *others)

    async def end(self) -> None:
        """Let each client finish its request."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _again(self, kind: _Client, rng: random.Random, is_over: Callable[[], bool]) -> None:
        while not is_over():
            started = time.monotonic()
            try:
                await kind(rng)
            except (aiohttp.ClientError, TimeoutError, OSError, AssertionError, ValueError) as error:
                if not (isinstance(error, AssertionError) and self._excuses(started)):
                    self._seen.unanswered.append(f"{kind.__name__.strip('_')}: {error!r}"[:200])
            self.num_requests += 1
            await asyncio.sleep(rng.random() * 0.05)

    # The well-behaved.

    async def _ask_for(self, kind: Kind, rng: random.Random) -> None:
        path, body = kind(rng)
        await self._ask(path, body)

    async def _batch(self, rng: random.Random) -> None:
        """A file of requests, run in the background, whatever happens meanwhile."""
        body = {"prompt": "a" * rng.randint(1, 99), "max_tokens": 8}
        line = {"method": "POST", "url": "/v1/completions", "body": body}
        lines = "\n".join(json.dumps({"custom_id": str(i), **line}) for i in range(rng.randint(1, 12)))
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", lines, filename="lines.jsonl")
        async with self._http.post("/v1/files", data=form) as response:
            file = await response.json()
            assert response.status == 200, file
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        async with self._http.post("/v1/batches", json=wanted) as response:
            batch = await response.json()
            assert response.status == 200, batch
        async with asyncio.timeout(_BATCH_PATIENCE):
            while batch["status"] not in ("completed", "failed", "expired"):
                await asyncio.sleep(0.2)
                async with self._http.get(f"/v1/batches/{batch['id']}") as response:
                    batch = await response.json()
        assert batch["status"] in ("completed", "expired"), batch["status"]  # the clock may have jumped by a day
        for name in (file["id"], batch["output_file_id"], batch["error_file_id"]):
            if name is not None:
                async with self._http.delete(f"/v1/files/{name}") as response:
                    assert response.status == 200

    async def _streams(self, rng: random.Random) -> None:
        body = {"prompt": "a" * rng.randint(1, 400), "max_tokens": rng.randint(1, 60), "ignore_eos": True}
        await self._stream(body | {"logprobs": rng.choice((None, 5))})

    async def _canary(self, rng: random.Random) -> None:
        number = rng.randrange(len(BODIES))
        tokens, is_whole = await self._stream(BODIES[number] | _CANARY)
        expected = self._expected[number]
        self._seen.canaries += is_whole
        if tokens != expected[: len(tokens)] or (is_whole and len(tokens) != len(expected)):
            self._seen.wrong.append(f"{number}: {tokens}")

    async def _ask(self, path: str, body: dict[str, Any]) -> None:
        started = time.monotonic()
        async with self._http.post(path, json=body) as response:
            answer = await response.json()
            self._count(response.status, started, response.headers)
            assert (answer.get("error") is None) == (response.status == 200), answer

    async def _stream(self, body: dict[str, Any]) -> tuple[list[int], bool]:
        """The tokens of a stream, and whether it was whole; one that fails must say so and end in order."""
        started = time.monotonic()
        async with self._http.post("/v1/completions", json=body | {"stream": True}) as response:
            self._count(response.status, started, response.headers)
            if response.status != 200:
                assert "error" in await response.json()
                return [], False
            *events, end = (line for line in (await response.text()).split("\n\n") if line)
        assert end == "data: [DONE]", end[-300:]
        tokens: list[int] = []
        for event in (json.loads(event.removeprefix("data: ")) for event in events):
            if "error" in event:
                if event["error"]["type"] != "service_unavailable_error" and not self._excuses(started):
                    self._seen.errors.append(f"in a stream: {event['error']['message'][:100]}")
                return tokens, False
            tokens += event["choices"][0].get("token_ids") or []
        return tokens, True

    def _count(self, status: int, started: float, headers: Any) -> None:
        self._seen.answered[status] = self._seen.answered.get(status, 0) + 1
        if status >= 500 and status != _DOWN and not self._excuses(started):
            self._seen.errors.append(f"status {status}")
        if status in (429, _DOWN) and "Retry-After" not in headers:
            self._seen.errors.append(f"{status} without Retry-After")

    # Those who leave.

    async def _leaves(self, rng: random.Random) -> None:
        body = {"prompt": "a" * rng.randint(1, 900), "max_tokens": 400, "ignore_eos": True, "stream": True}
        async with self._http.post("/v1/completions", json=body) as response:
            for _ in range(rng.randint(0, 20)):
                await response.content.readline()
            response.close()
        self._seen.aborted += 1

    async def _gives_up(self, rng: random.Random) -> None:
        body = {"prompt": "a" * rng.randint(1, 900), "max_tokens": 400, "ignore_eos": True, "n": 2}
        try:
            async with asyncio.timeout(rng.random() * 0.2), self._http.post("/v1/completions", json=body) as response:
                await response.read()
        except TimeoutError:
            self._seen.aborted += 1

    # The bad.

    async def _bad(self, rng: random.Random) -> None:
        started = time.monotonic()
        path = rng.choice(("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models/x"))
        async with self._http.post(path, data=rng.choice(BAD)) as response:
            assert "error" in await response.json(content_type=None)
            self._count(response.status, started, response.headers)
            assert response.status >= 400, response.status

    async def _late(self, rng: random.Random) -> None:
        """Slow readers, slow writers, half bodies; they may be answered in any way, or cut."""
        body = json.dumps({"prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=4096)
        try:
            if (kind := rng.choice(("reads", "writes", "half"))) == "reads":
                writer.write(head + body)
                with contextlib.suppress(TimeoutError):  # a short answer ends, and its connection stays open
                    async with asyncio.timeout(1.5):
                        for _ in range(rng.randint(1, 20)):
                            await reader.read(100)
                            await asyncio.sleep(0.05)
            elif kind == "writes":
                for byte in (head + body)[: rng.randint(1, 60)]:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.03)
            else:
                writer.write(head + body[: rng.randint(0, len(body) - 1)])
                await asyncio.sleep(rng.random() * 2)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        self._seen.aborted += 1


_CANARY = {"max_tokens": 24, "ignore_eos": True, "return_token_ids": True}

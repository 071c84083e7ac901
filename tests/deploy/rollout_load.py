"""Constant load for tests.deploy.rollout: streams and plain requests, by OpenAI's client and by httpx, without retries.

An answer counts as good only if it is whole: its finish reason and number of tokens are checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx
import openai

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_EACH = 3  # workers of each kind


@dataclass(frozen=True)
class Outcome:
    """How one request went: when, and what was wrong with it, if anything was."""

    request_id: str
    kind: str
    start: float
    end: float
    error: str = ""


class BrokenAnswerError(Exception):
    """An answer with status 200 that is not whole."""


class Load:
    """Workers that send one request after another until the `async with` statement ends; requests then finish."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False)
        self._openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx.AsyncClient(timeout=120, limits=limits, trust_env=False),
        )
        self._random = random.Random(0)
        self._ends = False
        self.outcomes: list[Outcome] = []

    async def __aenter__(self) -> Self:
        kinds = {
            "httpx, stream": self._httpx_stream,
            "httpx, plain": self._httpx_plain,
            "openai, stream": self._openai_stream,
            "openai, plain": self._openai_plain,
        }
        self._workers = [
            asyncio.create_task(self._work(kind, ask)) for kind, ask in kinds.items() for _ in range(_EACH)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ends = True
        await asyncio.gather(*self._workers)
        await self._http.aclose()
        await self._openai.close()

    async def _work(self, kind: str, ask: Callable[[dict[str, Any], dict[str, str]], Awaitable[None]]) -> None:
        while not self._ends:
            request_id, start, error = uuid.uuid4().hex, time.monotonic(), ""
            body = {
                "model": "tiny",
                "prompt": [self._random.randrange(100, 1000) for _ in range(self._random.randrange(1, 64))],
                "max_tokens": self._random.randrange(16, 128),
            }
            try:
                await ask(body, {"X-Request-Id": request_id})
            except (openai.OpenAIError, httpx.HTTPError, BrokenAnswerError) as problem:
                error = f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
            self.outcomes.append(Outcome(request_id, kind, start, time.monotonic(), error))

    async def _httpx_plain(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        response = await self._http.post("/v1/completions", json=body | {"ignore_eos": True}, headers=headers)
        response.raise_for_status()
        answer = response.json()
        _check(body, answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"])

    async def _httpx_stream(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        sent = body | {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        async with self._http.stream("POST", "/v1/completions", json=sent, headers=headers) as response:
            response.raise_for_status()
            lines = [line async for line in response.aiter_lines() if line]
        if lines[-1:] != ["data: [DONE]"]:
            raise BrokenAnswerError("the stream has no [DONE]")
        *_, last, usage = (json.loads(line.removeprefix("data: ")) for line in lines[:-1])
        if "error" in usage:
            raise BrokenAnswerError(usage["error"]["message"])
        _check(body, last["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"])

    async def _openai_plain(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        answer = await self._openai.completions.create(**body, extra_headers=headers, extra_body={"ignore_eos": True})
        _check(body, answer.choices[0].finish_reason, answer.usage and answer.usage.completion_tokens)

    async def _openai_stream(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        stream = await self._openai.completions.create(
            **body,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=headers,
            extra_body={"ignore_eos": True},
        )
        reason = num_tokens = None
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                reason = chunk.choices[0].finish_reason if chunk.choices else reason
                num_tokens = chunk.usage.completion_tokens if chunk.usage else num_tokens
        _check(body, reason, num_tokens)


def _check(body: dict[str, Any], reason: str | None, num_tokens: int | None) -> None:
    if (reason, num_tokens) != ("length", body["max_tokens"]):
        raise BrokenAnswerError(f"it ended with {reason} after {num_tokens} of {body['max_tokens']} tokens")

"""Work ends when nobody waits for it any more: clients that leave, and streams that fail."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import EngineUnavailableError
from engine.protocol import GenerateRequest, SamplingParams, Terms
from engine.step import SampledToken, StepResult
from tests.server.conftest import CHAT, COMPLETIONS, parse_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.step import StepPlan
    from tests.server.conftest import Api

LONG = {"max_tokens": 490, "ignore_eos": True, "temperature": 0}
MESSAGES = {"messages": [{"role": "user", "content": "a"}]}


class Caller:
    """A client that talks ASGI by hand, so that it can leave at any moment."""

    def __init__(self, api: Api, path: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.leave = asyncio.Event()
        self.received = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        self.task = asyncio.create_task(api.app(scope, self._receive, self._send))

    @property
    def body(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.received.set()

    async def disconnect(self) -> None:
        self.leave.set()
        async with asyncio.timeout(10):
            await self.task


async def check_aborted(api: Api, num_sequences: int) -> None:
    """All sequences were ended early, and their blocks are free."""
    await api.until_idle()
    assert await api.metric("sequences_finished_total", finished_reason="abort") == num_sequences
    assert await api.metric("sequences_finished_total", finished_reason="length") == 0
    assert await api.metric("kv_cache_usage_ratio") == 0


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, {"prompt": "a"}), (CHAT, MESSAGES)])
async def test_leaving_a_stream_frees_its_blocks(api: Api, path: str, body: dict[str, Any]) -> None:
    caller = Caller(api, path, body | LONG | {"stream": True, "n": 3})
    async with asyncio.timeout(10):
        await caller.received.wait()
    assert api.engine.has_work
    await caller.disconnect()
    await check_aborted(api, 3)
    assert "[DONE]" not in caller.body


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, {"prompt": "a"}), (CHAT, MESSAGES)])
async def test_leaving_before_a_whole_answer_frees_its_blocks(api: Api, path: str, body: dict[str, Any]) -> None:
    caller = Caller(api, path, body | LONG | {"n": 3})

    async def running() -> bool:
        return await api.metric("kv_cache_usage_ratio") > 0

    await api.until(running)
    await caller.disconnect()
    await check_aborted(api, 3)


async def test_leaving_while_queued_takes_the_request_out_of_the_queue(api: Api) -> None:
    first = asyncio.create_task(api.complete(["a"] * 16, max_tokens=150, ignore_eos=True))
    queued = Caller(api, COMPLETIONS, {"prompt": "b", "stream": True} | LONG)

    async def waits() -> bool:
        return await api.metric("requests_running") == 16 and await api.metric("requests_waiting") == 1

    await api.until(waits)
    await queued.disconnect()

    async def gone() -> bool:
        return await api.metric("requests_waiting") == 0

    await api.until(gone)
    assert not first.done()
    await first
    assert await api.metric("sequences_finished_total", finished_reason="abort") == 1


async def test_leaving_in_the_middle_of_a_prompt_frees_its_blocks(api: Api) -> None:
    """More prompt tokens than one step takes (512): the abort falls between chunks or before the first token."""
    caller = Caller(api, COMPLETIONS, {"prompt": [[65] * 500] * 6, "max_tokens": 12, "ignore_eos": True})

    async def running() -> bool:
        return await api.metric("kv_cache_usage_ratio") > 0 or api.engine.stats().num_running > 0

    await api.until(running)
    await caller.disconnect()
    await check_aborted(api, 6)


@pytest.mark.parametrize("delay", range(12))
async def test_leaving_after_any_number_of_turns_leaves_nothing_behind(api: Api, delay: int) -> None:
    """Turns of the event loop, from before the body is read to within the generation."""
    callers = [Caller(api, COMPLETIONS, {"prompt": "a", "stream": stream} | LONG) for stream in (True, False)]
    for _ in range(delay):
        await asyncio.sleep(0)
    await asyncio.gather(*(caller.disconnect() for caller in callers))
    await api.until_idle()
    assert await api.metric("sequences_finished_total", finished_reason="length") == 0
    assert api.client._streams == {}


async def test_those_who_stay_get_the_tokens_they_would_get_alone(api: Api) -> None:
    alone = (await api.complete("steady", **LONG))["choices"]
    leavers = [Caller(api, COMPLETIONS, {"prompt": f"leaver {i}", "stream": True} | LONG) for i in range(4)]
    beside = asyncio.create_task(api.complete("steady", **LONG))
    for caller in leavers:
        async with asyncio.timeout(10):
            await caller.received.wait()
        await caller.disconnect()
    assert not beside.done()
    assert (await beside)["choices"] == alone


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_stream_whose_engine_stops_ends_with_an_error_event_and_done(api: Api, path: str) -> None:
    caller = Caller(api, path, (MESSAGES if path == CHAT else {"prompt": "a"}) | LONG | {"stream": True})
    async with asyncio.timeout(10):
        await caller.received.wait()
    api.client.fail_all("The engine stopped.")
    async with asyncio.timeout(10):
        await caller.task
    *chunks, error = parse_events(caller.body)
    assert all("choices" in chunk for chunk in chunks)
    assert error == {
        "error": {
            "message": "The engine stopped.",
            "type": "service_unavailable_error",
            "param": None,
            "code": "server_is_overloaded",
        }
    }


async def test_a_whole_answer_whose_engine_stops_is_a_503(api: Api) -> None:
    caller = Caller(api, COMPLETIONS, {"prompt": "a"} | LONG)

    async def running() -> bool:
        return await api.metric("kv_cache_usage_ratio") > 0

    await api.until(running)
    api.client.fail_all("The engine stopped.")
    async with asyncio.timeout(10):
        await caller.task
    assert caller.sent[0]["status"] == 503
    assert json.loads(caller.body)["error"]["message"] == "The engine stopped."


@pytest.mark.parametrize("stream", [True, False])
async def test_logits_that_are_no_numbers_end_the_request_with_a_server_error(
    api: Api, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    compute: Callable[[StepPlan], StepResult] = api.engine.executor.execute
    steps = itertools.count(1)

    def run(plan: StepPlan) -> StepResult:
        result = compute(plan)
        if next(steps) == 5:
            return StepResult([SampledToken(None) for _ in result.sampled], result.prompt_logprobs)
        return result

    monkeypatch.setattr(api.engine.executor, "execute", run)
    response = await api.post(COMPLETIONS, prompt="a", stream=stream, **LONG)
    if stream:
        error = parse_events(response.text)[-1]["error"]
    else:
        assert response.status_code == 500
        error = response.json()["error"]
    assert error["type"] == "server_error"
    assert "not a number" in error["message"]
    await api.until_idle()
    assert await api.metric("sequences_finished_total", finished_reason="error") == 1
    assert await api.metric("sequences_finished_total", finished_reason="abort") == 0


async def test_an_output_stream_tells_the_engine_to_abort_what_is_still_live(api: Api) -> None:
    request = GenerateRequest("r", [65], SamplingParams(max_tokens=400, ignore_eos=True), 2, Terms(0.0))
    with api.client.submit([request]) as stream:
        first = await anext(stream)
        assert first.request_id == "r"
        stream.abort("r", 0)
        rest = [await anext(stream) for _ in range(5)]
        assert {output.index for output in rest} == {1}
    await api.until_idle()


async def test_an_engine_that_is_not_there_refuses_to_start_requests(api: Api) -> None:
    api.client.info = None
    with pytest.raises(EngineUnavailableError):
        api.client.submit([])
    api.client.info = api.engine.info

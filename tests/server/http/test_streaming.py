"""Work ends when the client of a request disconnects, and a stream that fails says so."""

import asyncio
import json

import pytest

from server.http.streaming import DataFrames, EventStream
from tests.server.conftest import BODIES, COMPLETIONS, parse_events

LONG = {"max_tokens": 490, "ignore_eos": True, "temperature": 0}


class Caller:
    """A client that speaks ASGI itself, so that it can disconnect at any moment."""

    def __init__(self, api, path, **body):
        self.sent = []
        self.leave, self.received = asyncio.Event(), asyncio.Event()
        self._body = json.dumps(BODIES[path] | body).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.create_task(api.app(scope, self._receive, self._send))

    @property
    def text(self):
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def _receive(self):
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)
        if message.get("body"):
            self.received.set()

    async def has_begun(self):
        async with asyncio.timeout(10):
            await self.received.wait()

    async def ends(self):
        async with asyncio.timeout(10):
            await self.task

    async def disconnect(self):
        self.leave.set()
        await self.ends()


async def until_computing(api):
    async def computing():
        return await api.metric("kv_cache_usage_ratio") > 0

    await api.until(computing)


async def check_aborted(api, num_sequences):
    """All sequences were ended early, and their blocks are free."""
    await api.until_idle()
    assert await api.metric("sequences_finished_total", finished_reason="abort") == num_sequences
    assert await api.metric("sequences_finished_total", finished_reason="length") == 0


async def test_leaving_a_stream_frees_its_blocks(api, path):
    caller = Caller(api, path, stream=True, n=3, **LONG)
    await caller.has_begun()
    assert api.engine.has_work
    await caller.disconnect()
    await check_aborted(api, 3)
    assert "[DONE]" not in caller.text


async def test_leaving_before_a_whole_answer_frees_its_blocks(api, path):
    caller = Caller(api, path, n=3, **LONG)
    await until_computing(api)
    await caller.disconnect()
    await check_aborted(api, 3)


async def test_leaving_in_the_middle_of_a_prompt_frees_its_blocks(api):
    """More prompt tokens than one step takes (512): the abort falls between chunks or before the first token."""
    caller = Caller(api, COMPLETIONS, prompt=[[65] * 300] * 6, max_tokens=200, ignore_eos=True)
    while not api.engine.has_work:
        await asyncio.sleep(0)
    await caller.disconnect()
    await check_aborted(api, 6)


async def test_leaving_while_queued_takes_the_request_out_of_the_queue(api):
    first = asyncio.create_task(api.complete(["a"] * 16, max_tokens=400, ignore_eos=True))
    admission = api.app.state.server.admission

    async def full():
        return await api.metric("requests_running") == 16 and admission.num_prompts == 0

    async def waits():
        return await api.metric("requests_waiting") == 1

    async def gone():
        return await api.metric("requests_waiting") == 0

    await api.until(full)
    queued = Caller(api, COMPLETIONS, stream=True, **LONG)
    await api.until(waits)
    assert admission.num_prompts == 1
    await queued.disconnect()
    assert admission.num_prompts == 0
    await api.until(gone)
    assert not first.done()
    await first
    assert await api.metric("sequences_finished_total", finished_reason="abort") == 1


@pytest.mark.parametrize("delay", range(12))
async def test_leaving_after_any_number_of_turns_leaves_nothing_behind(api, delay):
    """Turns of the event loop, from before the body is read to within the generation."""
    callers = [Caller(api, COMPLETIONS, stream=stream, **LONG) for stream in (True, False)]
    for _ in range(delay):
        await asyncio.sleep(0)
    await asyncio.gather(*(caller.disconnect() for caller in callers))
    await api.until_idle()
    assert await api.metric("sequences_finished_total", finished_reason="length") == 0
    assert api.client._streams == {}
    assert api.app.state.server.admission.num_prompts == 0


async def test_those_who_stay_get_the_tokens_they_would_get_alone(api):
    alone = (await api.complete("steady", **LONG))["choices"]
    leavers = [Caller(api, COMPLETIONS, prompt=f"leaver {i}", stream=True, **LONG) for i in range(4)]
    beside = asyncio.create_task(api.complete("steady", **LONG))
    for caller in leavers:
        await caller.has_begun()
        await caller.disconnect()
    assert not beside.done()
    assert (await beside)["choices"] == alone


async def test_a_stream_whose_engine_stops_ends_with_an_error_event_and_done(api, path):
    caller = Caller(api, path, stream=True, **LONG)
    await caller.has_begun()
    api.client.fail_all("The engine stopped.")
    await caller.ends()
    *chunks, error = parse_events(caller.text)
    assert all("choices" in chunk for chunk in chunks)
    assert error == {
        "error": {
            "message": "The engine stopped.",
            "type": "service_unavailable_error",
            "param": None,
            "code": "server_is_overloaded",
        }
    }


async def test_a_whole_answer_whose_engine_stops_is_a_503(api, path):
    caller = Caller(api, path, **LONG)
    await until_computing(api)
    api.client.fail_all("The engine stopped.")
    await caller.ends()
    assert caller.sent[0]["status"] == 503
    assert json.loads(caller.text)["error"]["message"] == "The engine stopped."


async def test_an_unexpected_failure_is_told_to_the_client_without_its_reason(caplog):
    """The stream's chunks so far stay; the resources are released; the log has the reason."""
    sent, released = [], []

    class Resources:
        def __enter__(self):
            pass

        def __exit__(self, *_):
            released.append(True)

    async def chunks():
        yield {"a": 1}
        raise ZeroDivisionError("secret")

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await EventStream(chunks(), Resources(), DataFrames())({"type": "http"}, receive, send)
    first, error = parse_events(b"".join(message.get("body", b"") for message in sent).decode())
    assert first == {"a": 1}
    assert error["error"]["type"] == "server_error"
    assert "secret" not in str(error)
    assert "secret" in caplog.text
    assert released == [True]

"""Prompts that the guard reads before anything is generated, of each API."""

import asyncio

import pytest

from engine.protocol import SequenceOutput
from server.engine_client import EngineState
from server.guard.checked import CheckedDeltas
from server.text.long_texts import LongTexts
from tests.server.conftest import CHAT, COMPLETIONS, check_error

HI = [{"role": "user", "content": "hi"}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": "bad"}'}}
TOOL = {"type": "function", "function": {"name": "f", "description": "a bad tool"}}
FLAGGED = [
    (COMPLETIONS, {"prompt": "a bad thing"}, "prompt"),
    (COMPLETIONS, {"prompt": ["good", "a bad thing"], "max_tokens": 2}, "prompt"),
    (COMPLETIONS, {"prompt": b"a bad thing"}, "prompt"),  # as token ids
    (CHAT, {"messages": [{"role": "system", "content": "be bad"}, *HI]}, "messages"),
    (CHAT, {"messages": [*HI, {"role": "assistant", "content": "ok", "tool_calls": [CALL]}, *HI]}, "messages"),
    (CHAT, {"messages": HI, "tools": [TOOL]}, "messages"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"documents": [{"text": "bad"}]}}, "messages"),
    ("/v1/responses", {"input": "a bad thing"}, "input"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "param"), FLAGGED, ids=lambda value: str(value)[:70])
async def test_a_flagged_prompt_is_refused_before_anything_is_generated(guard, ids_of, path, body, param, stream):
    guarded = await guard()
    body = {name: ids_of(value.decode()) if isinstance(value, bytes) else value for name, value in body.items()}
    response = await guarded.api.http.post(path, json={**body, "stream": stream})
    error = check_error(response, 400, type="invalid_request_error", code="content_filter", param=param)
    assert error["message"] == "This server's guard has flagged the prompt as 'harm'."
    assert await guarded.api.metric("task_requests_total", task="generate") == 0
    assert await guarded.api.metric("requests_refused_total", reason="content_filter") == 1
    assert await guarded.api.metric("guard_checks_total", checked="prompt", result="flagged") == 1
    assert guarded.api.app.state.server.admission.num_prompts == 0


async def test_anthropics_api_refuses_in_its_own_shape(guard):
    guarded = await guard()
    body = {"messages": [{"role": "user", "content": "a bad thing"}], "max_tokens": 2}
    response = await guarded.api.http.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "flagged" in response.json()["error"]["message"]


async def test_each_text_is_read_by_itself_as_it_was_written(guard):
    guarded = await guard()
    messages = [{"role": "system", "content": "be kind"}, *HI, {"role": "assistant", "content": "yes?"}, *HI]
    await guarded.api.ask(CHAT, messages=messages, max_tokens=1)
    assert guarded.read[:4] == ["be kind", "hi", "yes?", "hi"]


@pytest.mark.parametrize("before", [0, 20, 31, 32, 45, 61, 62, 63, 64, 100, 127, 200])
async def test_a_long_prompt_is_read_in_pieces_that_leave_no_gap(guard, before):
    guarded = await guard()
    prompt = "x" * before + "bad" + "y" * (250 - before)
    check_error(await guarded.api.post(COMPLETIONS, prompt=prompt), 400, code="content_filter")
    assert all(len(request.prompt_token_ids) <= 64 for request in guarded.engine.requests)


async def test_very_many_texts_do_not_fill_the_guard_at_once(guard):
    guarded = await guard(lambda text: None)
    asking = asyncio.create_task(guarded.api.post(COMPLETIONS, prompt=["hi"] * 100, max_tokens=1))
    await guarded.api.until(lambda: _is(len(guarded.read) == 8))
    asking.cancel()
    await asyncio.wait({asking})
    assert len(guarded.engine.aborted) == 8
    assert guarded.engine.num_requests == 0


async def _is(value):
    return value


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_without_its_guard_nothing_is_answered(guard, path):
    guarded = await guard()
    guarded.engine.info, guarded.engine.state, guarded.engine.last_end = None, EngineState.RESTARTING, "status -9"
    error = check_error(await guarded.api.post(path), 503, type="service_unavailable_error")
    assert error["message"] == "The guard is restarting. Please try again soon."
    for probe in ("/health", "/readyz"):
        response = await guarded.api.http.get(probe)
        assert response.status_code == 503
        assert response.json() == {"status": "restarting", "problem": "the guard ended: status -9"}
    assert (await guarded.api.http.get("/livez")).status_code == 200
    assert await guarded.api.metric("guard_ready") == 0
    assert await guarded.api.metric("ready") == 1


@pytest.mark.parametrize("reason", ["error", "timeout"])
async def test_a_guard_that_cannot_say_lets_nothing_pass(guard, reason):
    guarded = await guard(lambda text: SequenceOutput(guarded.engine.requests[-1].request_id, 0, [], reason))
    status = {"error": 503, "timeout": 408}[reason]
    check_error(await guarded.api.post(COMPLETIONS), status)
    assert await guarded.api.metric("guard_checks_total", checked="prompt", result="failed") == 1
    assert await guarded.api.metric("task_requests_total", task="generate") == 0


async def test_a_guard_that_hangs_is_waited_for_until_the_requests_time_is_over(guard, monkeypatch):
    monkeypatch.setattr("server.output_stream._GRACE", 0.0)
    guarded = await guard(lambda text: None)
    check_error(await guarded.api.post(COMPLETIONS, timeout=0.01), 408)


async def test_without_a_guard_deltas_come_as_they_are_made(api, monkeypatch):
    monkeypatch.setattr(CheckedDeltas, "__init__", None)
    await api.complete("hi", max_tokens=2)


async def test_moderations_are_the_guards(guard):
    guarded = await guard()
    for model in (None, "tiny", "sentry"):
        response = await guarded.api.http.post("/v1/moderations", json={"input": ["bad", "good"], "model": model})
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "sentry"
        assert [result["flagged"] for result in response.json()["results"]] == [True, False]
    check_error(await guarded.api.http.post("/v1/moderations", json={"input": "a", "model": "x"}), 404, param="model")


async def test_many_texts_and_those_for_moderation_share_a_bound(guard, monkeypatch):
    guarded = await guard()
    server, sizes = guarded.api.app.state.server, []
    run = LongTexts.run

    async def counted(texts, num_bytes, *call):
        if texts is server.guard.texts and num_bytes:
            sizes.append(num_bytes)
        return await run(texts, num_bytes, *call)

    monkeypatch.setattr(LongTexts, "run", counted)
    await guarded.api.http.post(COMPLETIONS, json={"prompt": ["x" * 50] * 82, "max_tokens": 1})
    assert sizes == [50] * 82
    await guarded.api.http.post("/v1/moderations", json={"input": "y" * 40})
    assert sizes[82:] == [40]

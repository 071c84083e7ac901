"""Bodies as they come: any content type, and none that holds the event loop."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from server import memory
from server.http.json_body import MAX_KEYS, MAX_KEYS_OF_OBJECT, MAX_VALUES
from server.large import LargeRequests
from tests.server.conftest import COMPLETIONS, check_error


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml", "", "x"])
async def test_a_body_is_json_whatever_its_content_type(api, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    response = await api.http.post(COMPLETIONS, content=json.dumps({"prompt": "a", "max_tokens": 1}), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"prompt": 1' + b"0" * 5000 + b"}", b"prompt=a"])
async def test_what_is_not_json_is_a_400(api, body):
    response = await api.http.post(COMPLETIONS, content=body)
    check_error(response, 400, type="invalid_request_error")
    assert "not valid JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a", "model": "tiny", "model": "other"}',
        '{"prompt": "a", "logit_bias": {"1": 1, "2": 2, "1": 1}}',
        '{"prompt": "a", "us\\u0065r": "a", "user": "a"}',
    ],
)
async def test_a_key_that_comes_twice_is_refused(api, body):
    error = check_error(await api.http.post(COMPLETIONS, content=body), 400, type="invalid_request_error")
    assert "twice" in error["message"]


async def test_a_key_that_comes_twice_cannot_forge_the_error(api):
    key = json.dumps("\n\x1b" + "x" * 1000)
    error = check_error(await api.http.post(COMPLETIONS, content=f"{{{key}: 1, {key}: 2}}"), 400)
    assert error["message"].isprintable()
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", **{f"a{i}": 1 for i in range(MAX_KEYS)}},
        {"prompt": [1] * (MAX_VALUES + 1)},
        {"prompt": [[1]] * (MAX_VALUES // 2 + 1)},
        {"prompt": "," * MAX_VALUES},
    ],
)
async def test_bodies_of_very_many_values_are_refused_before_they_are_decoded(api, body):
    response = await api.http.post(COMPLETIONS, json=body)
    check_error(response, 400, type="invalid_request_error")
    assert str(MAX_VALUES) in response.json()["error"]["message"]


@pytest.mark.parametrize("space", [" ", "\t", "\n", "\r", " \t\r\n"])
async def test_white_space_hides_no_keys(api, space):
    keys = ",".join(f'"{i}"{space}:1' for i in range(MAX_KEYS + 1))
    response = await api.http.post(COMPLETIONS, content=f"{{{keys}}}")
    assert f"{MAX_KEYS} keys" in check_error(response, 400)["message"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
async def test_json_is_utf_8(api, encoding):
    body = '{"prompt": "a", "max_tokens": 1}'.encode(encoding)
    response = await api.http.post(COMPLETIONS, content=body)
    assert response.status_code == (200 if encoding == "utf-8-sig" else 400)


@pytest.mark.parametrize("body", [{"prompt": "a\ud800"}, {"prompt": "a", "user": "\udfff"}, {"\ud800": 1}])
async def test_half_a_surrogate_pair_is_refused_wherever_it_is(api, body):
    response = await api.http.post(COMPLETIONS, content=json.dumps(body))
    assert "surrogate" in check_error(response, 400, type="invalid_request_error")["message"]
    whole = await api.http.post(COMPLETIONS, content=json.dumps({"prompt": "\N{GRINNING FACE}", "max_tokens": 1}))
    assert whole.status_code == 200


async def test_one_object_has_so_many_keys(api):
    for size, reason in ((MAX_KEYS_OF_OBJECT + 1, "more than 5000 keys"), (MAX_KEYS_OF_OBJECT, "'k0'")):
        body = {"prompt": "a", "stream_options": {f"k{i}": 1 for i in range(size)}}
        error = check_error(await api.http.post(COMPLETIONS, content=json.dumps(body)), 400)
        assert reason.strip("'") in error["message"]


async def test_punctuation_in_a_text_is_no_key(api):
    response = await api.http.post(COMPLETIONS, json={"prompt": ":" * (MAX_KEYS + 1)})
    assert check_error(response, 400)["code"] == "context_length_exceeded"


async def test_of_many_unknown_fields_the_first_is_named(api):
    body = {"prompt": "a", "temperature": 0.0, "zz": 1, **{f"a{i}": 1 for i in range(1000)}}
    response = await api.http.post(COMPLETIONS, json=body)
    check_error(response, 400, param="zz")


async def test_a_refused_body_is_not_kept_until_the_garbage_collector_comes(api):
    """Its strings are not counted by the collector, which therefore comes late."""
    size = 190_001
    gc.disable()
    try:
        check_error(await api.http.post(COMPLETIONS, content=json.dumps({"prompt": ["a"] * size})), 400)
        assert not any(type(kept) is list and len(kept) == size for kept in gc.get_objects())
    finally:
        gc.enable()


async def test_after_a_large_body_memory_is_given_back(api, monkeypatch):
    counted = []
    monkeypatch.setattr(api.app.state.trimming, "count", counted.append)
    for size, number in ((100, 0), (2_000_000, 1)):
        await api.http.post(COMPLETIONS, content=json.dumps({"prompt": "a" * size}))
        assert len(counted) == number
    assert counted[0] > size


async def test_memory_is_given_back_once_for_several_requests(monkeypatch):
    trimmed: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(memory, "_DELAY", 0.0)
    monkeypatch.setattr(memory.Trimmer, "trim", lambda _: loop.call_soon_threadsafe(trimmed.put_nowait, None))
    trimming = memory.Trimming()
    for _ in range(2):
        trimming.count(memory.LARGE - 1)
        for _ in range(2):
            trimming.count(1)
        async with asyncio.timeout(10):
            await trimmed.get()
        assert trimmed.empty()


async def test_large_bodies_are_bounded_together(api):
    large = LargeRequests(100_000)
    api.app.state.large = large
    body = json.dumps({"prompt": "a" * 60_000})
    with large.one(60_000):
        answer = await api.http.post(COMPLETIONS, content=body)
        check_error(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        assert (await api.post(COMPLETIONS)).status_code == 200
        with large.one(60_000, is_bounded_elsewhere=True):  # a line of a batch
            pass
    assert (await api.http.post(COMPLETIONS, content=body)).status_code == 400  # too long, which was found out


async def test_a_large_body_gets_the_answer_that_a_small_one_gets(api):
    padding = " " * 40_000
    for fields in ({"prompt": "a", "max_tokens": 1}, {"prompt": 1}, {"prompt": "a", "nonsense": 1}, {"n": 0}):
        body = json.dumps(fields)
        answers = [await api.http.post(COMPLETIONS, content=content) for content in (body, body + padding)]
        assert answers[0].status_code == answers[1].status_code
        assert answers[0].json().get("error") == answers[1].json().get("error")


async def test_queries_of_very_many_parameters_are_refused_before_they_are_parsed(api):
    response = await api.http.get("/v1/files?" + "&".join(f"a{i}" for i in range(100)))
    assert "64" in check_error(response, 400)["message"]

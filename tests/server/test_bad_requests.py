"""Whatever is sent: an answer below 500 in OpenAI's error shape, naming the field, and an engine that serves on."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.conftest import CHAT, COMPLETIONS, check_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.server.conftest import Api

ROUTES = (COMPLETIONS, CHAT)
GOOD: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "a"},
    CHAT: {"messages": [{"role": "user", "content": "a"}]},
}


@pytest.fixture(scope="module")
def canary() -> dict[str, Any]:
    """The answer to a request that nothing here may disturb, once it is known."""
    return {}


@pytest.fixture(autouse=True)
async def _serves_on(api: Api, canary: dict[str, Any]) -> AsyncIterator[None]:
    """After every refusal here, the engine is idle and answers as before."""

    async def choices() -> Any:
        return (await api.complete("canary", temperature=0, max_tokens=4))["choices"]

    if not canary:
        canary["choices"] = await choices()
    yield
    await api.until_idle()
    assert await choices() == canary["choices"]


async def post_raw(api: Api, path: str, content: bytes, content_type: str = "application/json") -> Any:
    return await api.http.post(path, content=content, headers={"Content-Type": content_type})


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}),
        ("response_format", {"type": "json_object"}),
        ("best_of", 2),
        ("suffix", "end"),
        ("prompt_logprobs", 1),
        ("guided_json", {}),
        ("guided_regex", "(a+)+b"),
        ("structured_outputs", {"regex": "a"}),
        ("prompt_embeds", "AAAA"),
        ("audio", {}),
        ("modalities", ["audio"]),
        ("reasoning_effort", "low"),
        ("chat_template", "{{ 1 }}"),
        ("service_tier", "flex"),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("no_such_parameter", 0),
        ("Temperature", 1),
        ("", 1),
    ],
)
async def test_what_is_not_implemented_is_refused_by_name(api: Api, path: str, name: str, value: Any) -> None:
    response = await api.post(path, **GOOD[path], **{name: value})
    error = check_error(response, 400, type="invalid_request_error", param=name)
    assert f"'{name}'" in error["message"]


@pytest.mark.parametrize(
    ("path", "name", "value", "message"),
    [
        (COMPLETIONS, "stop", "", "Invalid 'stop': String should have at least 1 character"),
        (COMPLETIONS, "stop", ["a", ""], "Invalid 'stop.1': String should have at least 1 character"),
        (COMPLETIONS, "stop", ["a"] * 17, "Invalid 'stop': List should have at most 16 items"),
        (COMPLETIONS, "stop", 5, "Invalid 'stop': Input should be a valid string"),
        (CHAT, "messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
         "Invalid 'messages.0.content.0.type': Input should be 'text'"),
        (CHAT, "messages", [{"role": "user", "content": 5}],
         "Invalid 'messages.0.content': Input should be a valid string"),
    ],
)  # fmt: skip
async def test_of_a_field_of_several_types_the_one_that_was_meant_is_named(
    api: Api, path: str, name: str, value: Any, message: str
) -> None:
    response = await api.post(path, **GOOD[path] | {name: value})
    error = check_error(response, 400, type="invalid_request_error", param=name)
    assert error["message"].startswith(message)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", -1),
        ("n", 1_000_000),
        ("n", 10**30),
        ("n", 1.5),
        ("n", "1"),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1 << 31),
        ("top_k", 0.5),
        ("min_p", -1),
        ("min_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 1 << 31),
        ("max_tokens", 10**40),
        ("max_tokens", "5"),
        ("max_tokens", 1e3),
        ("min_tokens", -1),
        ("min_tokens", 10**9),
        ("seed", 1 << 63),
        ("seed", -(1 << 63) - 1),
        ("seed", 0.5),
        ("stop", ""),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 1025),
        ("stop", 5),
        ("stop", [5]),
        ("stop", {"a": 1}),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [258]),
        ("stop_token_ids", [1 << 40]),
        ("stop_token_ids", [1] * 129),
        ("stop_token_ids", 5),
        ("logit_bias", {"258": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"": 1}),
        ("logit_bias", {"²": 1}),
        ("logit_bias", {"99999999999999999999": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": "x"}),
        ("logit_bias", [1]),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("ignore_eos", "yes"),
        ("ignore_eos", 1),
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("stream_options", {"unknown": True}),
        ("stream_options", []),
        ("model", 5),
        ("model", "m" * 2000),
        ("user", {"a": 1}),
        ("user", "u" * 1_000_000),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", "5"),
        ("logprobs", [1]),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("top_logprobs", 1),
        ("return_token_ids", "x"),
        ("skip_special_tokens", 0),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bad_values_are_refused(api: Api, path: str, name: str, value: Any) -> None:
    response = await api.post(path, **GOOD[path] | {name: value})
    error = check_error(response, 400, type="invalid_request_error")
    assert name in (error["param"] or error["message"])
    assert len(error["message"]) < 2000


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "field",
    [
        "temperature",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "max_tokens",
    ],
)
async def test_numbers_that_are_not_finite_are_refused(api: Api, path: str, number: str, field: str) -> None:
    body = json.dumps(GOOD[path])[:-1] + f', "{field}": {number}}}'
    check_error(await post_raw(api, path, body.encode()), 400, type="invalid_request_error")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
async def test_a_bias_that_is_not_finite_is_refused(api: Api, number: str) -> None:
    body = f'{{"prompt": "a", "logit_bias": {{"1": {number}}}}}'
    check_error(await post_raw(api, COMPLETIONS, body.encode()), 400, param="logit_bias")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        [""],
        [[]],
        ["a", ""],
        [[65], []],
        None,
        5,
        True,
        {"text": "a"},
        [1.5],
        [True],
        [None],
        ["a", 1],
        [1, "a"],
        [[1], "a"],
        [["a"]],
        [[[1]]],
        [-1],
        [258],
        [65, 258],
        [[65], [258]],
        [1 << 31],
        [1 << 63],
        [10**30],
        ["a"] * 2049,
        [65] * 513,
        [65] * 512,
        "a" * 513,
        "a" * 500_000,
    ],
    ids=lambda value: repr(value[:3] if isinstance(value, str | list) else value),
)
async def test_bad_prompts_are_refused(api: Api, prompt: Any) -> None:
    response = await api.post(COMPLETIONS, prompt=prompt)
    error = check_error(response, 400, type="invalid_request_error")
    assert "prompt" in (error["param"] or error["message"]) or error["code"] == "context_length_exceeded"
    assert len(error["message"]) < 2000


async def test_too_many_choices_over_all_prompts_are_refused_before_any_starts(api: Api) -> None:
    check_error(await api.post(COMPLETIONS, prompt=["a"] * 2000, n=100), 400)
    assert await api.metric("requests_waiting") == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a" * 600}, "prompt"),
        ({"prompt": [65] * 600}, "prompt"),
        ({"prompt": "a", "max_tokens": 600}, "max_tokens"),
        ({"prompt": ["a", "a" * 600]}, "prompt"),
    ],
)
async def test_more_than_the_context_is_refused_with_openais_code(api: Api, body: dict[str, Any], param: str) -> None:
    error = check_error(await api.post(COMPLETIONS, **body), 400, code="context_length_exceeded", param=param)
    assert "maximum context length is 512 tokens" in error["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "hi",
        {},
        [None],
        ["hi"],
        [[]],
        [{}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": ["hi"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "extra": 1}]}],
        [{"role": 5, "content": "hi"}],
        [{"role": "", "content": "hi"}],
        [{"role": None, "content": "hi"}],
        [{"role": "r" * 65, "content": "hi"}],
        [{"role": "wizard", "content": "hi"}],
        [{"content": "hi"}],
        [{"role": "user", "content": "a"}] * 4097,
        [{"role": "user", "content": "a" * 500_000}],
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_bad_messages_are_refused(api: Api, messages: Any) -> None:
    response = await api.post(CHAT, messages=messages)
    error = check_error(response, 400, type="invalid_request_error", param="messages")
    assert len(error["message"]) < 2000


@pytest.mark.parametrize(
    "kwargs",
    [
        {"messages": []},
        {"add_generation_prompt": True},
        {str(i): i for i in range(65)},
        [],
        "x",
        {"bos_token": None},
        {"bos_token": {"a": [1]}},
        {"raise_exception": 1},
        {"self": 1},
        {"": 1},
        {"source": 1, "context": 2, "environment": 3, "kwargs": 4},
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_odd_template_variables_never_break_the_server(api: Api, kwargs: Any) -> None:
    response = await api.post(CHAT, **GOOD[CHAT], chat_template_kwargs=kwargs, max_tokens=1)
    if response.status_code != 200:
        check_error(response, 400, type="invalid_request_error")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b'{"prompt": "a"',
        b'{"prompt": "a",}',
        b"{'prompt': 'a'}",
        b'{"prompt": "a"} x',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"\x00",
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b"null",
        b"[]",
        b'"a"',
        b"5",
        b"true",
        b"NaN",
        b'[{"prompt": "a"}]',
    ],
    ids=lambda content: repr(content)[:30],
)
async def test_bodies_that_are_no_json_object_are_refused(api: Api, path: str, content: bytes) -> None:
    check_error(await post_raw(api, path, content), 400, type="invalid_request_error")


@pytest.mark.parametrize("depth", [100, 900, 1000, 5000, 20_000, 200_000])
@pytest.mark.parametrize("where", ["body", "prompt", "messages", "extra", "content", "message", "variables"])
async def test_deeply_nested_json_is_refused_or_served(api: Api, depth: int, where: str) -> None:
    nest = "[" * depth + "]" * depth
    path, body = {
        "body": (COMPLETIONS, nest),
        "prompt": (COMPLETIONS, f'{{"prompt": {nest}}}'),
        "messages": (CHAT, f'{{"messages": {nest}}}'),
        "extra": (CHAT, json.dumps(GOOD[CHAT])[:-1] + f', "extra": {nest}}}'),
        "content": (CHAT, f'{{"messages": [{{"role": "user", "content": {nest}}}]}}'),
        "message": (CHAT, f'{{"messages": [{{"role": "user", "content": "a", "x": {nest}}}], "max_tokens": 1}}'),
        "variables": (
            CHAT,
            json.dumps(GOOD[CHAT])[:-1] + f', "max_tokens": 1, "chat_template_kwargs": {{"x": {nest}}}}}',
        ),
    }[where]
    response = await post_raw(api, path, body.encode())
    if where in ("message", "variables") and depth <= 900 and response.status_code == 200:
        return  # deep, but readable, and nothing that this template uses
    check_error(response, 400, type="invalid_request_error")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, r'{"prompt": "\ud800"}'),
        (COMPLETIONS, r'{"prompt": ["\udfff"]}'),
        (COMPLETIONS, r'{"prompt": "a", "stop": "\ud800"}'),
        (COMPLETIONS, r'{"prompt": "a", "model": "\ud800"}'),
        (COMPLETIONS, r'{"prompt": "a", "user": "\ud800"}'),
        (COMPLETIONS, r'{"prompt": "a", "\ud800": 1}'),
        (COMPLETIONS, r'{"prompt": "a", "logit_bias": {"\ud800": 1}}'),
        (CHAT, r'{"messages": [{"role": "user", "content": "\ud800"}]}'),
        (CHAT, r'{"messages": [{"role": "\ud800", "content": "a"}]}'),
        (CHAT, r'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}'),
    ],
)
async def test_half_surrogates_are_refused(api: Api, path: str, body: str) -> None:
    check_error(await post_raw(api, path, body.encode()), 400, type="invalid_request_error")


async def test_half_surrogates_that_only_the_template_sees_never_break_the_server(api: Api) -> None:
    body = json.dumps(GOOD[CHAT])[:-1] + r', "max_tokens": 1, "chat_template_kwargs": {"bos_token": "\ud800"}}'
    check_error(await post_raw(api, CHAT, body.encode()), 400, type="invalid_request_error")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "", "x"]
)
async def test_another_content_type_is_refused(api: Api, path: str, content_type: str) -> None:
    response = await post_raw(api, path, json.dumps(GOOD[path]).encode(), content_type)
    assert response.status_code in (400, 415)
    check_error(response, response.status_code, type="invalid_request_error")


async def test_a_charset_beside_the_content_type_is_fine(api: Api) -> None:
    response = await post_raw(api, COMPLETIONS, b'{"prompt": "a"}', "application/json; charset=utf-8")
    assert response.status_code == 200


@pytest.mark.parametrize("path", ROUTES)
async def test_an_unknown_model_is_not_found(api: Api, path: str) -> None:
    response = await api.post(path, **GOOD[path], model="gpt-4")
    error = check_error(response, 404, type="not_found_error", param="model", code="model_not_found")
    assert "'gpt-4'" in error["message"]
    assert "'tiny'" in error["message"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/completion", "/v1/completions/", "/v1/chat", "/v1/embeddings", "/v2/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_route_is_not_found(api: Api, path: str, method: str) -> None:
    response = await api.http.request(method, path)
    if response.status_code == 307:  # a trailing slash
        assert response.headers["location"].endswith("/v1/completions")
        return
    check_error(response, 404, type="not_found_error")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", COMPLETIONS),
        ("PUT", CHAT),
        ("DELETE", CHAT),
        ("POST", "/v1/models"),
        ("POST", "/health"),
        ("PUT", "/metrics"),
    ],
)
async def test_a_wrong_method_is_not_allowed(api: Api, method: str, path: str) -> None:
    response = await api.http.request(method, path)
    check_error(response, 405, type="invalid_request_error")
    assert response.headers["allow"]


async def test_a_refusal_leaves_streams_beside_it_alone(api: Api) -> None:
    params = {"prompt": "steady", "temperature": 0, "ignore_eos": True, "max_tokens": 200}
    alone = await api.stream(COMPLETIONS, **params)
    beside = asyncio.create_task(api.stream(COMPLETIONS, **params))
    for prompt in ([258], "", "a" * 600, [[65], [1 << 20]]) * 5:
        check_error(await api.post(COMPLETIONS, prompt=prompt), 400)
    chunks = await beside
    assert [c["choices"][0]["text"] for c in chunks] == [c["choices"][0]["text"] for c in alone]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused_unread(api: Api, *, chunked: bool) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1 << 20
            yield b" " * (1 << 20)

    content = pieces() if chunked else b" " * ((32 << 20) + 1)
    response = await api.http.post(COMPLETIONS, content=content, headers={"Content-Type": "application/json"})
    check_error(response, 413, type="invalid_request_error")
    assert sent <= 34 << 20


@pytest.mark.parametrize(
    "prompt",
    [[-1] * 300_000, [[-1]] * 200_000, [1.5], [True], ["a", 1], [[1], "a"], [[]], {"a": 1}, 5],
    ids=lambda p: str(p)[:20],
)
async def test_a_prompt_of_the_wrong_kind_costs_one_short_answer(api: Api, prompt: Any) -> None:
    response = await api.post(COMPLETIONS, prompt=prompt)
    check_error(response, 400, param="prompt")
    assert len(response.content) < 500


async def test_many_faults_in_a_list_are_not_all_gathered(api: Api) -> None:
    for body in ({"stop": [5] * 100_000}, {"stop_token_ids": ["x"] * 100_000}):
        assert len((await api.post(COMPLETIONS, prompt="a", **body)).content) < 500
    response = await api.post(CHAT, messages=[{"role": "user", "content": [5] * 100_000}])
    check_error(response, 400)


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 0.01, "temperature": 2},
        {"repetition_penalty": 0.01, "temperature": 1.1e-5, "top_p": 0.5},
        {"logit_bias": {"5": 100}, "temperature": 1.1e-5},
    ],
    ids=str,
)
async def test_extreme_sampling_harms_nobody(api: Api, params: dict[str, Any]) -> None:
    answer = await api.complete("a b c", max_tokens=20, ignore_eos=True, **params)
    assert answer["usage"]["completion_tokens"] == 20
    check_error(await api.post(COMPLETIONS, prompt="a", repetition_penalty=1e-40), 400, param="repetition_penalty")

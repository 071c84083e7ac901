"""Requests that are refused: status 400 in OpenAI's error shape, naming the field, and an engine that serves on."""

import asyncio
import json

import pytest

from server.chat.chat_template import ChatTemplate
from tests.server.conftest import BODIES, CHAT, COMPLETIONS, check_error


@pytest.fixture(scope="module")
def canary():
    """The answer to a request that nothing here may disturb, once it is known."""
    return {}


@pytest.fixture(autouse=True)
async def _serves_on(api, canary):
    """After every refusal here, the engine is idle and answers as before."""

    async def choices():
        return (await api.complete("canary", temperature=0, max_tokens=4))["choices"]

    if not canary:
        canary["choices"] = await choices()
    yield
    await api.until_idle()
    assert await choices() == canary["choices"]


async def post_raw(api, path, body):
    return await api.http.post(path, content=body.encode(), headers={"Content-Type": "application/json"})


def short(value):
    return repr(value)[:40]


def pairs(values):
    return [(name, value) for name, values in values.items() for value in values]


NOT_IMPLEMENTED = {
    "tools": [[{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["auto"],
    "functions": [[{"name": "f"}]],
    "function_call": ["auto"],
    "suffix": ["end"],
    "prompt_embeds": ["AAAA"],
    "audio": [{}],
    "modalities": [["audio"]],
    "reasoning_effort": ["high"],
    "chat_template": ["{{ 1 }}"],
    "service_tier": ["flex"],
    "store": [True],
    "moderation": [{"model": "m"}],
    "web_search_options": [{}],
    "no_such_parameter": [0],
    "Temperature": [1],
    "": [1],
}


@pytest.mark.parametrize(("name", "value"), pairs(NOT_IMPLEMENTED), ids=short)
async def test_what_is_not_implemented_is_refused_by_name(api, path, name, value):
    if path == CHAT and name in ("tools", "tool_choice", "functions", "function_call"):
        pytest.skip("chats have tools")
    error = check_error(await api.post(path, **{name: value}), 400, type="invalid_request_error", param=name)
    assert f"'{name}" in error["message"]


@pytest.mark.parametrize(
    ("path", "name", "value", "message"),
    [
        (COMPLETIONS, "stop", "", "Invalid 'stop': String should have at least 1 character"),
        (COMPLETIONS, "stop", ["a", ""], "Invalid 'stop[1]': String should have at least 1 character"),
        (COMPLETIONS, "stop", ["a"] * 17, "Invalid 'stop': List should have at most 16 items"),
        (COMPLETIONS, "stop", [{}], "Invalid 'stop': Input should be a valid string"),
        (CHAT, "messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
         "Invalid 'messages[0].content[0].type': Input should be 'text'"),
        (CHAT, "messages", [{"role": "user", "content": 5}],
         "Invalid 'messages[0].content': Input should be a valid string"),
    ],
)  # fmt: skip
async def test_of_a_field_of_several_types_the_one_that_was_meant_is_named(api, path, name, value, message):
    error = check_error(await api.post(path, **{name: value}), 400, type="invalid_request_error", param=name)
    assert error["message"].startswith(message)


BAD_VALUES = {
    "n": [0, -1, 1_000_000, 10**30, 1.5, "1", True],
    "temperature": [-0.1, 2.1, "hot"],
    "top_p": [-0.1, 1.1],
    "top_k": [-2, 1 << 31, 0.5],
    "min_p": [-1, 1.1],
    "presence_penalty": [2.1],
    "frequency_penalty": [-2.1],
    "repetition_penalty": [0, -1, 1e-40],
    "max_tokens": [-1, 0, 1 << 31, 10**40, "5", 1e3],
    "min_tokens": [-1, 10**9],
    "seed": [1 << 63, -(1 << 63) - 1, 0.5],
    "stop": ["", [""], ["x"] * 17, "x" * 1025, -1, [258], [1.5], {"a": 1}],
    "allowed_token_ids": [[258], [-1], ["1"], 5, [1] * 8193],
    "bad_words": ["a", [""], [5], ["a"] * 129],
    "truncate_prompt_tokens": [0, -2, 1.5],
    "cache_salt": ["", 5, "k" * 1025],
    "prompt_cache_key": [""],
    "prompt_logprobs": [-1, 21, True],
    "metadata": [{"a": 1}, {"k" * 65: ""}, {"a": "v" * 513}, {str(i): "" for i in range(17)}],
    "service_tier": ["flex", "priority", 5],
    "prompt_cache_retention": ["1h"],
    "prompt_cache_options": [{"mode": "explicit"}, {"ttl": "30m"}],
    "stop_token_ids": [[-1], [258], [1 << 40], [1] * 129, 5],
    "logit_bias": [{"258": 1}, {"-1": 1}, {"a": 1}, {"": 1}, {"²": 1}, {"9" * 20: 1}, {"1": 101}, {"1": "x"}, [1],
                   {str(i): 1 for i in range(1025)}],
    "ignore_eos": ["yes", 1],
    "stream": ["true", 1],
    "stream_options": [{"include_usage": True}, {"unknown": True}, []],
    "model": [5, "m" * 2000],
    "user": [{"a": 1}, "u" * 1_000_000],
    "logprobs": [-1, 21, "5", [1]],
    "top_logprobs": [21, -1, 1],
    "return_token_ids": ["x"],
    "skip_special_tokens": [0],
    "priority": [0.5, 1 << 31],
    "timeout": [0, -1, 86401],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), pairs(BAD_VALUES), ids=short)
async def test_bad_values_are_refused(api, path, name, value):
    error = check_error(await api.post(path, **{name: value}), 400, type="invalid_request_error")
    assert name in (error["param"] or error["message"])
    assert len(error["message"]) < 2000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        (COMPLETIONS, {"stream_options": {}}, "stream_options"),
        (COMPLETIONS, {"best_of": 1, "n": 2}, "best_of"),
        (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of"),
        (COMPLETIONS, {"suffix": "b", "echo": True}, "suffix"),
        (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (COMPLETIONS, {"prompt": ["a"] * 100, "n": 100}, None),  # both are at fault
    ],
    ids=short,
)
async def test_of_fields_that_do_not_go_together_the_one_at_fault_is_named(api, path, body, param):
    check_error(await api.post(path, **body), 400, type="invalid_request_error", param=param)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "field",
    ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
     "max_tokens", "logit_bias"],
)  # fmt: skip
async def test_numbers_that_are_not_finite_are_refused(api, path, number, field):
    value = f'{{"1": {number}}}' if field == "logit_bias" else number
    body = json.dumps(BODIES[path])[:-1] + f', "{field}": {value}}}'
    check_error(await post_raw(api, path, body), 400, type="invalid_request_error", param=field)


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], [[]], ["a", ""], [[65], []], None, 5, True, {"text": "a"}, [1.5], [True], [None], ["a", 1], [1, "a"],
     [[1], "a"], [["a"]], [[[1]]], [-1], [258], [65, 258], [[65], [258]], [1 << 31], [1 << 63], [10**30], ["a"] * 2049,
     [65] * 513, [65] * 512, "a" * 513, "a" * 500_000, [-1] * 300_000, [[-1]] * 200_000],
    ids=lambda value: repr(value[:3] if isinstance(value, str | list) else value),
)  # fmt: skip
async def test_bad_prompts_cost_one_short_answer(api, prompt):
    response = await api.post(COMPLETIONS, prompt=prompt)
    error = check_error(response, 400, type="invalid_request_error")
    assert "prompt" in (error["param"] or error["message"]) or error["code"] == "context_length_exceeded"
    assert len(response.content) < 500


async def test_too_many_choices_over_all_prompts_are_refused_before_any_starts(api):
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
    ids=short,
)
async def test_more_than_the_context_is_refused_with_openais_code(api, body, param):
    error = check_error(await api.post(COMPLETIONS, **body), 400, code="context_length_exceeded", param=param)
    assert "maximum context length is 512 tokens" in error["message"]


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "messages",
    [[], None, "hi", {}, [None], ["hi"], [[]], [{}], user(5), user({"a": 1}), user(["hi"]), user([{"type": "text"}]),
     user([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]),
     user([{"type": "text", "text": "a", "extra": 1}]), user("a") * 4097, user("a" * 500_000), user([5] * 100_000),
     *([{"role": role, "content": "hi"}] for role in (5, "", None, "r" * 65, "wizard")), [{"content": "hi"}]],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
async def test_bad_messages_cost_one_short_answer(api, messages):
    response = await api.post(CHAT, messages=messages)
    check_error(response, 400, type="invalid_request_error", param="messages")
    assert len(response.content) < 500


@pytest.mark.parametrize("body", [{"stop": [5] * 100_000}, {"stop_token_ids": ["x"] * 100_000}], ids=short)
async def test_many_faults_in_a_list_are_not_all_gathered(api, path, body):
    response = await api.post(path, **body)
    check_error(response, 400, param=next(iter(body)))
    assert len(response.content) < 500


@pytest.mark.parametrize(
    "variables",
    [{"messages": []}, {"add_generation_prompt": True}, {"bos_token": None}, {"eos_token": "</s>"},
     {str(i): i for i in range(65)}, [], "x"],
    ids=short,
)  # fmt: skip
async def test_template_variables_that_are_the_servers_are_refused(api, variables):
    error = check_error(await api.post(CHAT, chat_template_kwargs=variables), 400, type="invalid_request_error")
    assert "chat_template_kwargs" in (error["param"] or error["message"])


@pytest.mark.parametrize(
    "variables",
    [{"raise_exception": 1}, {"self": 1}, {"": 1}, {"source": 1, "context": 2, "environment": 3, "kwargs": 4}],
    ids=short,
)
async def test_template_variables_of_any_name_are_taken(api, variables):
    expected = (await api.chat("hi", max_tokens=2, temperature=0))["choices"]
    answer = await api.chat("hi", chat_template_kwargs=variables, max_tokens=2, temperature=0)
    assert answer["choices"] == expected


@pytest.mark.parametrize("depth", [100, 900, 1000, 5000, 20_000, 200_000])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, "NEST"),
        (COMPLETIONS, '{"prompt": NEST}'),
        (CHAT, '{"messages": NEST}'),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "extra": NEST}'),
        (CHAT, '{"messages": [{"role": "user", "content": NEST}]}'),
    ],
)
async def test_deeply_nested_json_is_refused(api, path, body, depth):
    nest = "[" * depth + "]" * depth
    check_error(await post_raw(api, path, body.replace("NEST", nest)), 400, type="invalid_request_error")


@pytest.mark.parametrize("depth", [100, 900, 1000, 5000, 20_000, 200_000])
@pytest.mark.parametrize(
    "body",
    [
        '{"messages": [{"role": "user", "content": "a", "parsed": NEST}], "max_tokens": 1}',
        '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "chat_template_kwargs": {"x": NEST}}',
    ],
    ids=["message", "variables"],
)
async def test_deeply_nested_json_that_no_template_reads_is_served_or_refused_as_too_deep(api, body, depth):
    response = await post_raw(api, CHAT, body.replace("NEST", "[" * depth + "]" * depth))
    if depth == 100:
        assert response.status_code == 200
    elif depth >= 1000 or response.status_code != 200:
        check_error(response, 400, type="invalid_request_error")


HALF = r"\ud800"  # half a surrogate pair, which JSON can carry and UTF-8 cannot


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, '{"prompt": "HALF"}'),
        (COMPLETIONS, '{"prompt": ["HALF"]}'),
        (COMPLETIONS, '{"prompt": "a", "stop": "HALF"}'),
        (COMPLETIONS, '{"prompt": "a", "model": "HALF"}'),
        (COMPLETIONS, '{"prompt": "a", "user": "HALF"}'),
        (COMPLETIONS, '{"prompt": "a", "HALF": 1}'),
        (COMPLETIONS, '{"prompt": "a", "logit_bias": {"HALF": 1}}'),
        (CHAT, '{"messages": [{"role": "user", "content": "HALF"}]}'),
        (CHAT, '{"messages": [{"role": "HALF", "content": "a"}]}'),
        (CHAT, '{"messages": [{"role": "user", "content": [{"type": "text", "text": "HALF"}]}]}'),
    ],
)
async def test_half_surrogates_are_refused(api, path, body):
    check_error(await post_raw(api, path, body.replace("HALF", HALF)), 400, type="invalid_request_error")


async def test_half_surrogates_that_a_template_writes_are_refused(api, monkeypatch):
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate("{{ mood }}", {}))
    body = '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"mood": "HALF"}}'
    error = check_error(await post_raw(api, CHAT, body.replace("HALF", HALF)), 400)
    assert "half a surrogate pair" in error["message"]


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 0.01, "temperature": 2},
        {"repetition_penalty": 0.01, "temperature": 1.1e-5, "top_p": 0.5},
        {"logit_bias": {"5": 100}, "temperature": 1.1e-5},
    ],
    ids=str,
)
async def test_extreme_sampling_harms_nobody(api, params):
    answer = await api.complete("a b c", max_tokens=20, ignore_eos=True, **params)
    assert answer["usage"]["completion_tokens"] == 20


NEUTRAL = {
    "best_of": [1],
    "functions": [[]],
    "metadata": [{}, {str(i) * 4: "v" * 512 for i in range(16)}],
    "parallel_tool_calls": [True, False],
    "safety_identifier": ["someone"],
    "prompt_cache_retention": ["in_memory", "24h"],
    "prompt_cache_options": [{}, {"mode": "implicit"}],
    "use_beam_search": [False],
    "modalities": [["text"]],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto", "default"],
    "store": [False],
    "suffix": [""],
    "tool_choice": ["none"],
    "tools": [[]],
    "logit_bias": [{}],
    "stop": [[]],
    "user": ["someone"],
    "top_k": [-1],
}
NULLS = (
    "n temperature top_p max_tokens max_completion_tokens logprobs top_logprobs echo stream stream_options stop seed "
    "suffix best_of user model prompt_logprobs presence_penalty logit_bias no_such_parameter tools tool_choice"
)


@pytest.mark.parametrize(
    "values", [*({name: value} for name, value in pairs(NEUTRAL)), dict.fromkeys(NULLS.split())], ids=short
)
async def test_null_and_neutral_values_are_taken(api, path, values):
    greedy = {"temperature": 0, "ignore_eos": True, "max_tokens": 6}
    expected = (await api.ask(path, **greedy))["choices"]
    assert (await api.ask(path, **values | greedy))["choices"] == expected


async def test_a_refusal_leaves_streams_beside_it_alone(api):
    params = {"prompt": "steady", "temperature": 0, "ignore_eos": True, "max_tokens": 200}
    alone = await api.stream(COMPLETIONS, **params)
    beside = asyncio.create_task(api.stream(COMPLETIONS, **params))
    for prompt in ([258], "", "a" * 600, [[65], [1 << 20]]) * 5:
        check_error(await api.post(COMPLETIONS, prompt=prompt), 400)
    chunks = await beside
    assert [c["choices"][0]["text"] for c in chunks] == [c["choices"][0]["text"] for c in alone]

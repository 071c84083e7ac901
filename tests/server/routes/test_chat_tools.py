"""Tools in POST /v1/chat/completions: what is refused, and how calls look in answers and in streams."""

import json

import pytest

from server.chat.chat_template import ChatTemplate
from tests.server.conftest import CHAT, EOS_ID, check_error

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
OTHER = {"type": "function", "function": {"name": "now"}}
ARGUMENTS = '{"city": "Zürich <3"}'
WRITTEN = f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
SECOND = '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture
def write(say, ids_of, api, monkeypatch):
    """write(text) has the model write a text and end; prompts are short, as the context is."""
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate("{# tool_calls #}{{ messages[-1].content }}", {}))
    return lambda text: say([*ids_of(text), EOS_ID])


async def ask(api, **body):
    [choice] = (await api.ask(CHAT, temperature=0, **{"tools": [TOOL, OTHER]} | body))["choices"]
    return choice


async def stream(api, **body):
    chunks = await api.stream(CHAT, temperature=0, **{"tools": [TOOL, OTHER]} | body)
    return [chunk["choices"][0] for chunk in chunks if chunk["choices"]]


async def test_a_call_has_openais_shape(api, write):
    write(WRITTEN + SECOND)
    choice = await ask(api)
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "Let me look."
    first, second = message["tool_calls"]
    assert first == {"id": first["id"], "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
    assert second["function"] == {"name": "now", "arguments": "{}"}
    assert first["id"] != second["id"]


async def test_calls_alone_leave_no_content(api, write):
    write(SECOND)
    assert (await ask(api))["message"]["content"] is None
    write(SECOND)
    first = (await stream(api))[0]["delta"]
    assert first == {"role": "assistant", "content": None, "tool_calls": first["tool_calls"]}


async def test_a_streams_deltas_are_the_name_and_then_the_arguments_as_they_come(api, write):
    write(WRITTEN + SECOND)
    choices = await stream(api)
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "tool_calls"
    deltas = [choice["delta"] for choice in choices]
    assert all(deltas[:-1])  # no empty one but the last
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me look."
    entries = [entry for delta in deltas for entry in delta.get("tool_calls", [])]
    starts = [entry for entry in entries if "id" in entry]
    assert [(entry["index"], entry["function"]["name"]) for entry in starts] == [(0, "get_weather"), (1, "now")]
    assert all(entry["type"] == "function" for entry in starts)
    pieces = [entry["function"]["arguments"] for entry in entries if entry["index"] == 0]
    assert "".join(pieces) == ARGUMENTS
    assert len(pieces) > 15  # one a token


async def test_a_delta_that_is_not_sent_loses_no_token(api, write, ids_of):
    write(WRITTEN)
    choices = await stream(api, logprobs=True, return_token_ids=True)
    assert [i for choice in choices for i in choice["token_ids"]] == [*ids_of(WRITTEN), EOS_ID]


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN.replace("get_weather", "nobody"),
        WRITTEN.replace('"city":', '"city"'),
        "<tool_call>",
        "no call",
    ],
)
async def test_what_is_no_call_is_content(api, write, text):
    write(text)
    choice = await ask(api)
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == text
    assert "tool_calls" not in choice["message"]


async def test_without_tools_calls_are_content(api, write):
    write(WRITTEN)
    assert (await ask(api, tools=[]))["message"]["content"] == WRITTEN
    write(WRITTEN)
    assert (await ask(api, tool_choice="none"))["message"]["content"] == WRITTEN


async def test_a_call_that_max_tokens_cuts_off_is_reported_as_length(api, write, ids_of):
    write(WRITTEN)
    choice = await ask(api, max_tokens=len(ids_of(WRITTEN)) - 20)
    assert choice["finish_reason"] == "length"
    [call] = choice["message"]["tool_calls"]
    assert ARGUMENTS.startswith(call["function"]["arguments"])


async def test_calls_that_are_not_parallel_end_with_the_first(api, write):
    write(WRITTEN + SECOND)
    choice = await ask(api, parallel_tool_calls=False)
    assert choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]
    await api.until_idle()


async def test_the_first_call_ends_where_it_ends_and_not_at_a_marker_in_its_arguments(api, write):
    tricky = WRITTEN.replace("Zürich", "a </tool_call> b")
    write(tricky + SECOND)
    choice = await ask(api, parallel_tool_calls=False)
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == ARGUMENTS.replace("Zürich", "a </tool_call> b")
    write(tricky + SECOND)
    choices = await stream(api, parallel_tool_calls=False)
    entries = [entry for choice in choices for entry in choice["delta"].get("tool_calls", [])]
    assert "".join(entry["function"]["arguments"] for entry in entries) == call["function"]["arguments"]
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["tool_calls"]
    await api.until_idle()


async def test_calls_that_are_not_parallel_leave_stop_as_the_request_has_it(api, write, ids_of):
    [end] = ids_of("!")
    write("Hello! There")
    choice = await ask(api, parallel_tool_calls=False, stop=[end])
    assert choice["message"]["content"] == "Hello"


async def test_a_named_function_is_called_once(api, write):  # whose template has short prompts
    choice = {"type": "function", "function": {"name": "now"}}
    answer = await ask(api, tool_choice=choice, max_tokens=200)
    assert answer["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["now"]


async def test_the_older_fields_get_an_answer_in_older_words(api, write):
    body = {"tools": [], "functions": [FUNCTION, OTHER["function"]]}
    write(WRITTEN)
    choice = await ask(api, **body)
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert "tool_calls" not in choice["message"]
    write(WRITTEN)
    choices = await stream(api, **body)
    calls = [choice["delta"]["function_call"] for choice in choices if "function_call" in choice["delta"]]
    assert calls[0]["name"] == "get_weather"
    assert all("name" not in call for call in calls[1:])
    assert "".join(call["arguments"] for call in calls) == ARGUMENTS
    assert choices[-1]["finish_reason"] == "function_call"


async def test_reasoning_comes_before_calls_by_both_of_its_names_and_is_counted(api, write, ids_of):
    thought = "<think>\nhm <tool_call> hm\n</think>\n\n"
    write(thought + SECOND)
    answer = await api.ask(CHAT, temperature=0, tools=[OTHER])
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "hm <tool_call> hm"
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["now"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(ids_of(thought.strip()))}
    write(thought + SECOND)
    chunks = await api.stream(CHAT, temperature=0, tools=[OTHER], stream_options={"include_usage": True})
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "hm <tool_call> hm"
    assert chunks[-1]["usage"]["completion_tokens_details"] == answer["usage"]["completion_tokens_details"]


async def test_reasoning_goes_on_where_a_message_is_continued_in_it(api, write):
    write("so.</think>yes")
    talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "<think>hm, "}]
    message = (await ask(api, messages=talk, tools=[], continue_final_message=True))["message"]
    assert (message["reasoning"], message["content"]) == ("so.", "yes")


async def test_reasoning_can_be_left_out(api, write):
    write("<think>hm</think>yes")
    message = (await ask(api, include_reasoning=False))["message"]
    assert message == {"role": "assistant", "content": "yes", "refusal": None}
    write("<think>hm</think>yes")
    assert all("reasoning" not in choice["delta"] for choice in await stream(api, include_reasoning=False))


REFUSED = [
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools", "type 'custom'"),
    ({"tools": [{"type": "web_search"}]}, "tools", "type 'web_search'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "pattern"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools", "pattern"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]}, "tools", "object"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools", "dictionary"),
    ({"tools": [TOOL, TOOL]}, "tools", "two functions of one name"),
    ({"tools": [OTHER] * 513}, "tools", "at most 512"),
    ({"tools": [{**TOOL, "x": 1}]}, "tools", "'tools[0].x'"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"description": "a" * 70_000}}}]},
        "tools",
        "65536",
    ),
    ({"tool_choice": "required"}, "tool_choice", "goes with 'tools'"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "'none', 'auto', 'required'"),
    ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice", "'function'"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "names 'x'"),
    ({"tools": [TOOL], "functions": [FUNCTION]}, "functions", "older name"),
    ({"functions": [FUNCTION], "function_call": {"name": "x"}}, "function_call", "names 'x'"),
    ({"functions": [FUNCTION], "function_call": "required"}, "function_call", "it must be 'none', 'auto'"),
    ({"tools": [TOOL], "tool_choice": {"type": {"a": 1}}}, "tool_choice", "'function'"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "bool"),
    ({"tools": "x"}, "tools", "list"),
]


@pytest.mark.parametrize(("body", "param", "message"), REFUSED, ids=lambda value: json.dumps(value)[:60])
async def test_what_is_refused(api, body, param, message):
    error = check_error(await api.post(CHAT, **body), 400, type="invalid_request_error", param=param)
    assert message in error["message"]

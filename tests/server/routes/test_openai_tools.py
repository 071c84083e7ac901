"""OpenAI's client and its helpers for tools, against the API; the model is scripted, or made to call by grammar."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from server.chat.chat_template import ChatTemplate
from tests.server.conftest import EOS_ID


class GetWeather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Zürich"]
    days: int


TOOLS = [openai.pydantic_function_tool(GetWeather)]
MESSAGES = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "GetWeather", "arguments": {"city": "Zürich", "days": 3}}\n</tool_call>'
EXPECTED = GetWeather(city="Zürich", days=3)


@pytest.fixture
def chat(api, monkeypatch):
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate("{{ messages[-1].content[-20:] }}", {}))
    return openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=api.http, max_retries=0).chat


@pytest.fixture
def write(say, ids_of):
    return lambda text: say([*ids_of(text), EOS_ID])


async def test_parse_gives_arguments_of_the_functions_own_type(chat, write):
    write(CALL)
    answer = await chat.completions.parse(model="tiny", messages=MESSAGES, tools=TOOLS)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == EXPECTED
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_the_stream_helper_follows_a_call(chat, write):
    write(f"So.\n{CALL}\n{CALL}")
    async with chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "So."
    assert [call.function.parsed_arguments for call in final.choices[0].message.tool_calls] == [EXPECTED, EXPECTED]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.index, event.parsed_arguments) for event in done] == [(0, EXPECTED), (1, EXPECTED)]
    deltas = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(deltas) > 40  # as they come


async def test_a_loop_of_calls_and_results_goes_on(chat, write):
    write(CALL)
    first = await chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    write("It is sunny.")
    second = await chat.completions.create(model="tiny", messages=[*MESSAGES, message, result], tools=TOOLS)
    assert second.choices[0].message.content == "It is sunny."
    assert second.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "GetWeather"}}], ids=type)
async def test_a_call_that_must_come_comes_and_is_valid(chat, choice):
    """The model is random: the grammar alone makes the call."""
    digits = {"44": -100, "45": -100}
    answer = await chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        seed=1,
        max_tokens=300,
        logit_bias=digits,
    )
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    GetWeather.model_validate_json(call.function.arguments)
    assert json.loads(call.function.arguments).keys() == {"city", "days"}

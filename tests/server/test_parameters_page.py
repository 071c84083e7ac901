"""docs/parameters.md has a verdict for each field of ours and of the `openai` package, and each verdict is true."""

import re
import typing
from pathlib import Path

import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    chat_completion_assistant_message_param,
    chat_completion_developer_message_param,
    chat_completion_function_message_param,
    chat_completion_stream_options_param,
    chat_completion_system_message_param,
    chat_completion_tool_message_param,
    chat_completion_user_message_param,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)

from server.protocol import ChatCompletionRequest, CompletionRequest
from server.protocol.generation import StreamOptions
from server.protocol.messages import Message
from server.protocol.neutral import NEUTRAL_VALUES, REFUSED, NeutralFields
from tests.server.conftest import CHAT, COMPLETIONS, check_error

PAGE = (Path(__file__).parents[2] / "docs" / "parameters.md").read_text(encoding="utf-8")
VERDICTS = {
    name: verdict
    for names, verdict in re.findall(r"^\| +(`.*?`) +\| +(\w+) +\|", PAGE, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", names)
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

# A value of each of OpenAI's fields that asks for something, and with which fields it goes.
VALUES: dict[str, typing.Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 2,
    "echo": True,
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"65": 5},
    "logprobs": {COMPLETIONS: 2, CHAT: True},
    "max_completion_tokens": 3,
    "max_tokens": 3,
    "messages": [{"role": "user", "content": "hi"}],
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "model": "tiny",
    "moderation": {"model": "omni-moderation-latest"},
    "n": 2,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "text"},
    "presence_penalty": 0.5,
    "prompt": "hi",
    "prompt_cache_key": "a",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "medium",
    "response_format": {"type": "text"},
    "safety_identifier": "a",
    "seed": 1,
    "service_tier": "auto",
    "stop": ["a"],
    "store": False,
    "stream": True,
    "stream_options": {"include_usage": True},
    "suffix": "end",
    "temperature": 0.5,
    "tool_choice": "auto",
    "tools": [TOOL],
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "a",
    "verbosity": "medium",
    "web_search_options": {"search_context_size": "low"},
}
GOES_WITH = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [TOOL]},
    "function_call": {"functions": [{"name": "f"}]},
}
OPENAI = {
    COMPLETIONS: [*typing.get_type_hints(completion_create_params.CompletionCreateParamsBase), "stream"],
    CHAT: [*typing.get_type_hints(chat_create_params.CompletionCreateParamsBase), "stream"],
}


@pytest.mark.parametrize(("path", "field"), [(path, field) for path, fields in OPENAI.items() for field in fields])
async def test_every_field_of_openais_package_has_a_verdict_and_it_is_true(api, path, field):
    value = VALUES[field]
    value = value[path] if isinstance(value, dict) and path in value else value
    response = await api.post(path, **{"max_tokens": 2, field: value} | GOES_WITH.get(field, {}))
    if VERDICTS[field] == "refused" or field == "suffix":  # for which this model has no tokens
        error = check_error(response, 400, type="invalid_request_error", param=field)
        assert f"'{field}'" in error["message"]
        assert "implemented" not in error["message"]
    else:
        assert response.status_code == 200, response.text


def test_the_page_has_every_field_and_no_other():
    ours = {*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields}
    neutral = {*NeutralFields.model_fields, "guided_decoding_backend"}
    expected = {name: "neutral" if name in neutral else "honoured" for name in ours} | dict.fromkeys(REFUSED, "refused")
    assert expected == VERDICTS
    assert not ours & REFUSED.keys()


def test_the_page_names_every_value_that_is_taken_unasked():
    [sentence] = re.findall(r"Some clients send.*?\n\n", PAGE, re.DOTALL)
    elsewhere = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    assert set(re.findall(r"`(\w+)`", sentence)) == NEUTRAL_VALUES.keys() - elsewhere


@pytest.mark.parametrize(("field", "reason"), REFUSED.items())
async def test_what_is_refused_is_refused_with_its_reason(api, path, field, reason):
    error = check_error(await api.post(path, **{field: {"a": 1}}), 400, param=field)
    assert error["message"] == f"Unsupported parameter: '{field}' is not supported: {reason}."


@pytest.mark.parametrize(
    "kind",
    [
        chat_completion_assistant_message_param.ChatCompletionAssistantMessageParam,
        chat_completion_developer_message_param.ChatCompletionDeveloperMessageParam,
        chat_completion_function_message_param.ChatCompletionFunctionMessageParam,
        chat_completion_system_message_param.ChatCompletionSystemMessageParam,
        chat_completion_tool_message_param.ChatCompletionToolMessageParam,
        chat_completion_user_message_param.ChatCompletionUserMessageParam,
    ],
)
def test_messages_have_every_field_of_openais_package(kind):
    assert typing.get_type_hints(kind).keys() <= Message.model_fields.keys()


def test_stream_options_have_every_field_of_openais_package():
    theirs = typing.get_type_hints(chat_completion_stream_options_param.ChatCompletionStreamOptionsParam)
    assert theirs.keys() <= StreamOptions.model_fields.keys()

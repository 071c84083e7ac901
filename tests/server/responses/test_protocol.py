"""A verdict for each field of the request that OpenAI's client has: honoured, neutral, or refused by its name."""

from typing import get_type_hints

from openai.types.responses import InputTokenCountParams
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)

from server.responses.protocol import InputTokensRequest
from tests.server.conftest import check_error

RESPONSES = "/v1/responses"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
SCHEMA = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}

HONOURED = {  # with a value that asks for something
    "include": [["message.output_text.logprobs"], ["reasoning.encrypted_content"]],
    "input": ["hi", [{"role": "user", "content": "hi"}]],
    "instructions": ["be brief"],
    "max_output_tokens": [3],
    "metadata": [{"a": "b"}],
    "model": ["tiny"],
    "safety_identifier": ["someone"],  # accepted: nothing depends on it
    "store": [True, False],
    "stream": [True, False],
    "temperature": [0.5],
    "top_logprobs": [3],
    "top_p": [0.5],
    "user": ["someone"],
}
BOTH = {  # field -> values that are taken, values that are refused
    "background": ([False], [True]),
    "context_management": ([[]], [[{"type": "compaction"}]]),
    "max_tool_calls": ([3], [0]),
    "parallel_tool_calls": ([True], ["yes"]),
    "prompt_cache_key": (["k"], [5]),
    "prompt_cache_options": ([{}, {"mode": "implicit"}], [{"mode": "explicit"}]),
    "prompt_cache_retention": (["in_memory"], ["24h"]),
    "reasoning": ([{}, {"summary": "detailed"}, {"mode": "standard"}], [{"mode": "pro"}, {"context": "all_turns"}]),
    "service_tier": (["auto", "default"], ["flex", "priority"]),
    "stream_options": ([], [{"include_obfuscation": True}]),
    "text": (
        [{"format": {"type": "text"}}, {"format": {"type": "json_object"}}, {"format": SCHEMA}],
        [{"format": {"type": "json_schema", "name": "x"}}, {"a": 1}],
    ),
    "tool_choice": (["auto", "none"], ["required", {"type": "function", "name": "f"}, {"type": "mcp"}]),
    "tools": ([[]], [[{"type": "web_search"}], [FUNCTION, FUNCTION]]),
    "truncation": (["disabled", "auto"], ["middle"]),
}
REFUSED = {
    "access_programs": {"cyber": "standard"},
    "background_options": {"completion_window": "2h"},
    "conversation": "conv_1",
    "image": {"context_compression": "auto"},
    "moderation": {"model": "m"},
    "previous_response_id": "resp_1",  # honoured: tests/server/routes/test_responses.py
    "prompt": {"id": "p"},
}


def pairs(table):
    return [(name, value) for name, values in table.items() for value in values]


def test_each_field_of_openais_client_has_a_verdict():
    fields = {*get_type_hints(ResponseCreateParamsNonStreaming), *get_type_hints(ResponseCreateParamsStreaming)}
    assert fields == {*HONOURED, *BOTH, *REFUSED}
    counted = get_type_hints(InputTokenCountParams).keys() - {"conversation", "personality"}  # which are refused
    assert counted == InputTokensRequest.model_fields.keys()


async def test_what_is_honoured_or_neutral_is_taken(api):
    for name, value in pairs(HONOURED) + pairs({name: taken for name, (taken, _) in BOTH.items()}):
        body = {"input": "hi", "max_output_tokens": 2, "store": False, name: value}
        response = await api.http.post(RESPONSES, json=body)
        assert response.status_code == 200, (name, value, response.text)


async def test_what_is_not_implemented_is_refused_by_its_name(api):
    for name, value in [*REFUSED.items(), *pairs({name: refused for name, (_, refused) in BOTH.items()})]:
        response = await api.http.post(RESPONSES, json={"input": "hi", name: value})
        error = check_error(response, 400, type="invalid_request_error", param=name)
        assert name in error["message"] or name == "previous_response_id"


async def test_null_stands_for_the_default(api):
    for name in [*HONOURED, *BOTH, *REFUSED]:
        body = {"input": "hi", "max_output_tokens": 2, "store": False, name: None}
        response = await api.http.post(RESPONSES, json=body)
        assert response.status_code == (400 if name == "input" else 200), (name, response.text)

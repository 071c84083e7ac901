"""A verdict for each field of the requests that Anthropic's client has: honoured, neutral, or refused by its name."""

from typing import get_type_hints

from anthropic.types import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming, MessageCreateParamsStreaming

from server.messages.protocol import CountRequest, MessagesRequest

HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}

TAKEN = {  # honoured, or neutral
    "cache_control": [{"type": "ephemeral"}],
    "max_tokens": [3],
    "messages": [HI],
    "metadata": [{}, {"user_id": "someone"}],
    "model": ["tiny"],
    "output_config": [{}, {"format": {"type": "json_schema", "schema": {"type": "object"}}}],
    "service_tier": ["auto", "standard_only"],
    "speed": ["standard"],
    "stop_sequences": [["a", "b"], []],
    "stream": [True, False],
    "system": ["be", [{"type": "text", "text": "be"}]],
    "temperature": [0.5],
    "thinking": [{"type": "adaptive"}, {"type": "disabled"}],
    "tool_choice": [{"type": "auto"}, {"type": "none"}],
    "tools": [[]],
    "top_k": [5],
    "top_p": [0.5],
}
REFUSED = {
    "container": ["c"],
    "diagnostics": [{"previous_message_id": "m"}],
    "inference_geo": ["eu"],
    "messages": [[], [{"role": "user", "content": [IMAGE]}], [{"role": "wizard", "content": "a"}]],
    "output_config": [{"format": {"type": "xml"}}],
    "service_tier": ["priority"],
    "speed": ["fast"],
    "thinking": [{"type": "enabled"}, {"type": "enabled", "budget_tokens": 2000}, {"type": "between_tools"}],
    "tool_choice": [{"type": "any"}, {"type": "tool", "name": "f"}],
    "tools": [[{"type": "bash_20250124", "name": "bash"}], [TOOL, TOOL]],
    "thread": [{"type": "create"}],
    "user_profile_id": ["u"],
    "workspace_id": ["w"],
    "n": [1],
}
OLDER = {"temperature", "top_k", "top_p"}  # which the client's types no longer have, and programs still send


def pairs(table):
    return [(name, value) for name, values in table.items() for value in values]


def test_each_field_of_anthropics_client_has_a_verdict():
    create = {*get_type_hints(MessageCreateParamsNonStreaming), *get_type_hints(MessageCreateParamsStreaming)}
    assert create | OLDER == {*TAKEN, *REFUSED} - {"n", "thread"}
    assert {*get_type_hints(MessageCountTokensParams)} <= {*TAKEN, *REFUSED}
    assert CountRequest.model_fields.keys() < MessagesRequest.model_fields.keys()


async def test_what_is_honoured_or_neutral_is_taken(api):
    for name, value in pairs(TAKEN):
        response = await api.http.post("/v1/messages", json={"messages": HI, "max_tokens": 2, name: value})
        assert response.status_code == 200, (name, value, response.text)


async def test_what_is_not_implemented_is_refused_by_its_name(api):
    for name, value in pairs(REFUSED):
        response = await api.http.post("/v1/messages", json={"messages": HI, "max_tokens": 2, name: value})
        assert response.status_code == 400, (name, value, response.text)
        assert f"'{name}" in response.json()["error"]["message"], (name, value, response.text)


async def test_null_stands_for_the_default_where_there_is_one(api):
    for name in {**TAKEN, **REFUSED}:
        response = await api.http.post("/v1/messages", json={"messages": HI, "max_tokens": 2, name: None})
        required = name in ("messages", "max_tokens")
        assert response.status_code == (400 if required else 200), (name, response.text)

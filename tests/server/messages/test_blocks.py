"""Blocks become chat messages."""

import pytest
from pydantic import ValidationError

from server.messages.blocks import InputMessage

TEXT = {"type": "text", "text": "hi"}
THINKING = {"type": "thinking", "thinking": "hm", "signature": "s"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"é": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [TEXT, TEXT]}
CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"é": 1}'}}


@pytest.mark.parametrize(
    ("role", "content", "messages"),
    [
        ("user", "hi", [{"role": "user", "content": "hi"}]),
        ("system", [TEXT], [{"role": "system", "content": "hi"}]),
        ("user", [TEXT, TEXT], [{"role": "user", "content": "hihi"}]),
        ("user", [RESULT, TEXT],
         [{"role": "tool", "tool_call_id": "t1", "content": "hihi"}, {"role": "user", "content": "hi"}]),
        ("user", [{**RESULT, "content": "no such file", "is_error": True}],
         [{"role": "tool", "tool_call_id": "t1", "content": "Error: no such file"}]),
        ("user", [{"type": "tool_result", "tool_use_id": "t1"}],
         [{"role": "tool", "tool_call_id": "t1", "content": ""}]),
        ("assistant", [THINKING, TEXT, USE, USE],
         [{"role": "assistant", "content": "hi", "reasoning_content": "hm", "tool_calls": [CALL, CALL]}]),
    ],
)  # fmt: skip
def test_a_message_becomes_chat_messages(role, content, messages):
    assert InputMessage.model_validate({"role": role, "content": content}).for_chat() == messages


@pytest.mark.parametrize(
    ("role", "block", "named"),
    [
        ("user", {"type": "image", "source": {}}, "'image'"),
        ("user", {"type": "document", "source": {}}, "'document'"),
        ("assistant", {"type": "redacted_thinking", "data": ""}, "'redacted_thinking'"),
        ("user", {**RESULT, "content": [{"type": "image"}]}, "'image'"),
        ("user", THINKING, "role user cannot have a block of type thinking"),
        ("assistant", RESULT, "role assistant cannot have a block of type tool_result"),
        ("user", {**TEXT, "cache_control": {"type": "forever"}}, "cache_control"),
        ("assistant", {**USE, "input": "{}"}, "input"),
        ("user", "hi", "no type"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(role, block, named):
    with pytest.raises(ValidationError, match=named):
        InputMessage.model_validate({"role": role, "content": [block]})

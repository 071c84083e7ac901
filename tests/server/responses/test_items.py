"""Items become chat messages; what a turn of an assistant has is one message."""

import pytest
from pydantic import TypeAdapter, ValidationError

from server.responses.items import AnyItem, chat_messages, opened, sealed

USER = {"role": "user", "content": [{"type": "input_text", "text": "h"}, {"type": "input_text", "text": "i"}]}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
ANSWER = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
          "content": [{"type": "output_text", "text": "yes", "annotations": [], "logprobs": []}]}  # fmt: skip
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "5"}
TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(*items):
    return TypeAdapter(list[AnyItem]).validate_python(list(items))


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([USER], [{"role": "user", "content": "hi"}]),
        ([{"role": "developer", "content": "be"}], [{"role": "developer", "content": "be"}]),
        ([REASONING, ANSWER], [{"role": "assistant", "reasoning_content": "hm", "content": "yes"}]),
        ([REASONING, CALL], [{"role": "assistant", "reasoning_content": "hm", "tool_calls": [TOOL_CALL]}]),
        ([ANSWER, CALL, CALL], [{"role": "assistant", "content": "yes", "tool_calls": [TOOL_CALL, TOOL_CALL]}]),
        ([ANSWER, ANSWER], [{"role": "assistant", "content": "yes"}] * 2),
        ([CALL, REASONING, ANSWER],
         [{"role": "assistant", "tool_calls": [TOOL_CALL]},
          {"role": "assistant", "reasoning_content": "hm", "content": "yes"}]),
        ([CALL, OUTPUT, ANSWER],
         [{"role": "assistant", "tool_calls": [TOOL_CALL]}, {"role": "tool", "tool_call_id": "c1", "content": "5"},
          {"role": "assistant", "content": "yes"}]),
    ],
)  # fmt: skip
def test_a_turns_items_are_one_message(items, messages):
    assert chat_messages(read(*items)) == messages


def test_reasoning_is_read_from_whatever_holds_it():
    summary = {**REASONING, "content": None, "summary": [{"type": "summary_text", "text": "sum"}]}
    closed = {**REASONING, "content": None, "encrypted_content": sealed("é")}
    assert [message["reasoning_content"] for message in chat_messages(read(summary))] == ["sum"]
    assert [message["reasoning_content"] for message in chat_messages(read(closed))] == ["é"]
    assert opened(sealed("")) == ""


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"type": "computer_call", "id": "x"}, "'computer_call'"),
        ({**USER, "content": [{"type": "input_image", "image_url": "x"}]}, "'input_image'"),
        ({**USER, "content": [{"type": "input_text"}]}, "lacks its text"),
        ({**USER, "role": "wizard"}, "'user'"),
        ({**REASONING, "encrypted_content": "gAAAA"}, "encrypted_content"),
        ({**CALL, "namespace": "n"}, "namespace"),
        ({**OUTPUT, "output": 5}, "output"),
        ("hi", "has no type"),
        ({}, "id"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(item, named):
    with pytest.raises(ValidationError, match=named):
        read(item)

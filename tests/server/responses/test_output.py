"""Pieces become items, and the stream's events tell of the same items, as OpenAI's types have them."""

import pytest
from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from server.chat.pieces import Content, Reasoning, ToolCallArguments, ToolCallStart
from server.responses.items import opened
from server.responses.output import OutputWriter

PIECES = [
    Reasoning("h"),
    Reasoning("m"),
    Content("o"),
    Content("k"),
    ToolCallStart(0, "c1", "f"),
    ToolCallArguments(0, '{"a"'),
    ToolCallArguments(0, ": 1}"),
    ToolCallStart(1, "c2", "g"),
    Content("!"),
]


def write(pieces, *, status="completed", summarises=False, seals=False):
    writer = OutputWriter("k", summarises=summarises, seals=seals)
    events = [*writer.write(pieces, []), *writer.close(status)]
    return writer.items, events


@pytest.mark.parametrize("summarises", [True, False])
def test_items_and_events_are_of_openais_types(summarises):
    items, events = write(PIECES, summarises=summarises, seals=True)
    for item in items:
        read = TypeAdapter(ResponseOutputItem).validate_python(item)
        assert read.type == item["type"]
        assert not read.model_extra
    for number, event in enumerate(events):
        read = TypeAdapter(ResponseStreamEvent).validate_python({**event, "sequence_number": number})
        assert read.type == event["type"]


def test_items_are_whole_in_the_end():
    items, _ = write(PIECES, seals=True)
    assert [item["id"] for item in items] == ["rs_k_0", "msg_k_1", "fc_k_2", "fc_k_3", "msg_k_4"]
    reasoning, message, call, other, last = items
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert opened(reasoning["encrypted_content"]) == "hm"
    assert message["content"] == [{"type": "output_text", "text": "ok", "annotations": [], "logprobs": []}]
    assert (call["call_id"], call["name"], call["arguments"], call["status"]) == ("c1", "f", '{"a": 1}', "completed")
    assert (other["name"], other["arguments"], last["content"][0]["text"]) == ("g", "", "!")


def test_only_the_last_item_of_an_unfinished_answer_is_incomplete():
    items, _ = write(PIECES, status="incomplete")
    assert [item["status"] for item in items] == ["completed"] * 4 + ["incomplete"]


def test_each_item_begins_grows_and_ends_before_the_next_begins():
    _, events = write(PIECES)
    assert [event["output_index"] for event in events] == sorted(event["output_index"] for event in events)
    for index in range(5):
        own = [event["type"].removeprefix("response.") for event in events if event["output_index"] == index]
        assert (own[0], own[-1]) == ("output_item.added", "output_item.done")
    calls = [event for event in events if "function_call" in event["type"]]
    assert [event.get("delta", event.get("arguments")) for event in calls] == ['{"a"', ": 1}", '{"a": 1}', ""]


def test_an_item_that_began_is_not_changed_by_what_follows():
    _, events = write(PIECES)
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert {item["status"] for item in added} == {"in_progress"}
    assert [item.get("content", item.get("arguments")) for item in added] == [[], [], "", "", []]

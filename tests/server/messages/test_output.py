"""Pieces become blocks, and the stream's events tell of the same blocks."""

import pytest

from server.chat.pieces import Content, Reasoning, ToolCallArguments, ToolCallStart
from server.messages.output import BlockWriter, signature

PIECES = [
    Reasoning("h"),
    Reasoning("m"),
    Content("o"),
    Content("k"),
    ToolCallStart(0, "c1", "f"),
    ToolCallArguments(0, '{"a"'),
    ToolCallArguments(0, ": 1}"),
    ToolCallStart(1, "c2", "g"),
]


def write(pieces):
    writer = BlockWriter()
    events = [*writer.write(pieces), *writer.close()]
    return writer.blocks, events


def test_blocks_are_whole_in_the_end():
    blocks, _ = write(PIECES)
    assert blocks == [
        {"type": "thinking", "thinking": "hm", "signature": signature("hm")},
        {"type": "text", "text": "ok"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]


def test_each_block_begins_grows_and_ends_before_the_next_begins():
    _, events = write(PIECES)
    assert [(event["index"], event["type"].removeprefix("content_block_")) for event in events] == [
        *[(0, "start"), (0, "delta"), (0, "delta"), (0, "delta"), (0, "stop")],
        *[(1, "start"), (1, "delta"), (1, "delta"), (1, "stop")],
        *[(2, "start"), (2, "delta"), (2, "delta"), (2, "stop")],
        *[(3, "start"), (3, "stop")],
    ]
    assert events[10]["delta"] == {"type": "input_json_delta", "partial_json": '{"a"'}
    assert events[9]["content_block"] == {"type": "tool_use", "id": "c1", "name": "f", "input": {}}


@pytest.mark.parametrize("text", ['{"a": ', "[1]", "5", "no"])
def test_input_that_is_no_object_is_kept_as_it_is(text):
    blocks, _ = write([ToolCallStart(0, "c1", "f"), ToolCallArguments(0, text)])
    assert blocks[0]["input"] == {"INVALID_JSON": text}

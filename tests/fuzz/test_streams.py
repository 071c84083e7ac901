"""Server-sent events, whatever texts they carry: a strict parser reads back what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from engine.errors import GenerationError
from server.http.streaming import DataFrames, EventStream, NamedFrames
from tests.fuzz.values import FUZZ

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_LINE_END = re.compile(r"\r\n|\n|\r")  # of the specification of server-sent events
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["[DONE]", "data: [DONE]\n\n", "\r\n", "\r", "\0", "\u2028", "\ufeff", "event: error\ndata: x\n\n", ": ", "id: 1"]
)
chunks = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["a.b", "c"]), "text": text, "n": st.integers(0, 9)}))


def parse(stream: bytes) -> list[tuple[str, str]]:
    """Events as (name, data), by the specification's rules; each must end."""
    events, name, data = [], "", []
    lines = _LINE_END.split(stream.decode())
    assert lines[-1] == ""
    for line in lines[:-1]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            events.append((name, "\n".join(data)))
            name, data = "", []
        elif field == "event":
            name = value
        else:
            assert field == "data", line
            data.append(value)
    assert not data
    return events


async def sent(items: list[Any], frames: Any, error: Exception | None) -> bytes:
    """What an EventStream sends for these chunks, with an error behind them."""
    parts: list[bytes] = []

    async def generate() -> AsyncGenerator[Any, None]:
        for item in items:
            yield item
        if error is not None:
            raise error

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    await EventStream(generate(), contextlib.nullcontext(), frames)({}, receive, send)
    return b"".join(parts)


@FUZZ
@given(chunks, st.sampled_from([None, GenerationError("a\n\ndata: b"), KeyError("\r\n")]))
def test_data_lines(items: list[Any], error: Exception | None) -> None:
    *events, end = parse(asyncio.run(sent(items, DataFrames(), error)))
    assert end == ("", "[DONE]")
    assert all(name == "" for name, _ in events)
    read = [json.loads(data) for _, data in events]
    if error is not None:
        assert read.pop()["error"]["type"] == "server_error"
    assert read == items


@FUZZ
@given(chunks)
def test_named_events(items: list[Any]) -> None:
    events = parse(asyncio.run(sent(items, NamedFrames(lambda error: {"type": "error", "text": str(error)}), None)))
    assert [(name, json.loads(data)) for name, data in events] == [(item["type"], item) for item in items]

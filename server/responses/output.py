"""An answer's items, as they grow: pieces come in, the events of a stream go out, and the items are whole in the end.

Events have no sequence numbers yet: those are the stream's (server.responses.call).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.chat.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from server.responses.items import Json, sealed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class OutputWriter:
    """Writes one answer. Items follow each other: one is closed before the next is opened."""

    def __init__(self, key: str, *, summarises: bool, seals: bool) -> None:
        """`key` makes the items' ids; `summarises` gives reasoning as a summary; `seals` adds it sealed."""
        self._key, self._reasoning, self._seals = key, _SUMMARY if summarises else _REASONING, seals
        self._items: list[_TextItem | _CallItem] = []
        self._is_open = False

    @property
    def items(self) -> list[Json]:
        """The answer's items so far."""
        return [item.item for item in self._items]

    def write(self, pieces: Iterable[Piece], logprobs: list[Json]) -> Iterator[Json]:
        """Take more of the answer, and the reports of the tokens of its text; yield the events."""
        for piece in pieces:
            match piece:
                case Reasoning(text):
                    yield from self._text(self._reasoning, text, [])
                case Content(text):
                    yield from self._text(_MESSAGE, text, logprobs)
                    logprobs = []
                case ToolCallStart(_, call_id, name):
                    yield from self.close("completed")
                    yield from self._open(_CallItem(len(self._items), self._id("fc"), call_id, name))
                case ToolCallArguments(_, text):
                    call = self._items[-1]
                    assert isinstance(call, _CallItem)
                    yield call.grow(text)

    def close(self, status: str) -> Iterator[Json]:
        """End the item that is open, if one is; yield the events."""
        if self._is_open:
            self._is_open = False
            yield from self._items[-1].end(status)

    def _text(self, form: _Form, text: str, logprobs: list[Json]) -> Iterator[Json]:
        item = self._items[-1] if self._is_open else None
        if not isinstance(item, _TextItem) or item.form is not form:
            yield from self.close("completed")
            item = _TextItem(len(self._items), self._id(form.prefix), form, seals=self._seals)
            yield from self._open(item)
        yield item.grow(text, logprobs)

    def _open(self, item: _TextItem | _CallItem) -> Iterator[Json]:
        self._items.append(item)
        self._is_open = True
        yield from item.begin()

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._key}_{len(self._items)}"


@dataclass(frozen=True)
class _Form:
    """The words for one kind of item that holds one text."""

    prefix: str
    item: Json
    parts: str  # the item's field that the text is in
    index: str
    part_event: str
    text_event: str
    part_type: str


_MESSAGE = _Form(
    "msg", {"type": "message", "role": "assistant", "content": []},
    "content", "content_index", "content_part", "output_text", "output_text",
)  # fmt: skip
_REASONING = _Form(
    "rs", {"type": "reasoning", "summary": [], "content": []},
    "content", "content_index", "content_part", "reasoning_text", "reasoning_text",
)  # fmt: skip
_SUMMARY = _Form(
    "rs", {"type": "reasoning", "summary": []},
    "summary", "summary_index", "reasoning_summary_part", "reasoning_summary_text", "summary_text",
)  # fmt: skip


class _TextItem:
    """A message, or reasoning: one part of text."""

    def __init__(self, index: int, item_id: str, form: _Form, *, seals: bool) -> None:
        self.form = form
        self.item: Json = {"id": item_id, "status": "in_progress", **form.item}
        self._place = {"item_id": item_id, "output_index": index, form.index: 0}
        self._output_index, self._seals = index, seals and form is not _MESSAGE
        self._texts: list[str] = []
        self._logprobs: list[Json] = []

    def begin(self) -> Iterator[Json]:
        yield {"type": "response.output_item.added", "output_index": self._output_index, "item": dict(self.item)}
        yield {"type": f"response.{self.form.part_event}.added", **self._place, "part": self._part("", [])}

    def grow(self, text: str, logprobs: list[Json]) -> Json:
        self._texts.append(text)
        self._logprobs += logprobs
        return self._text_event("delta", {"delta": text}, logprobs)

    def end(self, status: str) -> Iterator[Json]:
        text = "".join(self._texts)
        part = self._part(text, self._logprobs)
        self.item = {**self.item, "status": status, self.form.parts: [part]}
        if self._seals:
            self.item["encrypted_content"] = sealed(text)
        yield self._text_event("done", {"text": text}, self._logprobs)
        yield {"type": f"response.{self.form.part_event}.done", **self._place, "part": part}
        yield {"type": "response.output_item.done", "output_index": self._output_index, "item": self.item}

    def _text_event(self, kind: str, fields: Json, logprobs: list[Json]) -> Json:
        event: Json = {"type": f"response.{self.form.text_event}.{kind}", **self._place, **fields}
        return {**event, "logprobs": logprobs} if self.form is _MESSAGE else event

    def _part(self, text: str, logprobs: list[Json]) -> Json:
        part: Json = {"type": self.form.part_type, "text": text}
        return {**part, "annotations": [], "logprobs": logprobs} if self.form is _MESSAGE else part


class _CallItem:
    """A call of a function."""

    def __init__(self, index: int, item_id: str, call_id: str, name: str) -> None:
        self.item: Json = {"id": item_id, "type": "function_call", "status": "in_progress", "call_id": call_id}
        self.item |= {"name": name, "arguments": ""}
        self._place: dict[str, Any] = {"item_id": item_id, "output_index": index}
        self._texts: list[str] = []

    def begin(self) -> Iterator[Json]:
        yield {"type": "response.output_item.added", "output_index": self._place["output_index"], "item": self.item}

    def grow(self, text: str) -> Json:
        self._texts.append(text)
        return {"type": "response.function_call_arguments.delta", **self._place, "delta": text}

    def end(self, status: str) -> Iterator[Json]:
        arguments = "".join(self._texts)
        self.item = {**self.item, "status": status, "arguments": arguments}
        done = {"name": self.item["name"], "arguments": arguments}
        yield {"type": "response.function_call_arguments.done", **self._place, **done}
        yield {"type": "response.output_item.done", "output_index": self._place["output_index"], "item": self.item}

"""An answer's blocks, as they grow: pieces come in, the events of a stream go out, the blocks are whole in the end."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from server.chat.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Json = dict[str, Any]


class BlockWriter:
    """Writes one answer. Blocks follow each other: one is closed before the next is opened.

    Attributes:
        blocks: the answer's blocks that are closed.
    """

    def __init__(self) -> None:
        self.blocks: list[Json] = []
        self._block: Json | None = None  # as it began
        self._texts: list[str] = []

    def write(self, pieces: Iterable[Piece]) -> Iterator[Json]:
        """Take more of the answer; yield the events."""
        for piece in pieces:
            match piece:
                case Reasoning(text):
                    yield from self._in({"type": "thinking", "thinking": "", "signature": ""})
                    yield self._grow("thinking_delta", "thinking", text)
                case Content(text):
                    yield from self._in({"type": "text", "text": ""})
                    yield self._grow("text_delta", "text", text)
                case ToolCallStart(_, call_id, name):
                    yield from self.close()
                    yield from self._in({"type": "tool_use", "id": call_id, "name": name, "input": {}})
                case ToolCallArguments(_, text):
                    yield self._grow("input_json_delta", "partial_json", text)

    def close(self) -> Iterator[Json]:
        """End the block that is open, if one is; yield the events."""
        if self._block is None:
            return
        text, index = "".join(self._texts), len(self.blocks)
        block = _filled(self._block, text)
        if block["type"] == "thinking":
            delta = {"type": "signature_delta", "signature": block["signature"]}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
        self.blocks.append(block)
        self._block, self._texts = None, []

    def _in(self, block: Json) -> Iterator[Json]:
        """Have a block of this type open."""
        if self._block is None or self._block["type"] != block["type"]:
            yield from self.close()
            self._block = block
            yield {"type": "content_block_start", "index": len(self.blocks), "content_block": block}

    def _grow(self, kind: str, field: str, text: str) -> Json:
        self._texts.append(text)
        return {"type": "content_block_delta", "index": len(self.blocks), "delta": {"type": kind, field: text}}


def _filled(block: Json, text: str) -> Json:
    """Return a block with its text."""
    match block["type"]:
        case "thinking":
            return {**block, "thinking": text, "signature": signature(text)}
        case "tool_use":
            return {**block, "input": _input(text)}
        case _:
            return {**block, "text": text}


def signature(thinking: str) -> str:
    """Return what stands for a signature: clients keep thinking for the next request only if it has one."""
    return hashlib.sha256(thinking.encode(errors="replace")).hexdigest()


def _input(text: str) -> Json:
    """Return a call's input; text that is no JSON object (a model that is not constrained can write it) in one."""
    try:
        parsed = json.loads(text or "{}")
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {"INVALID_JSON": text}

"""What a chat answer is made of, whatever the API: pieces as they come, and the whole message that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins. Calls do not overlap, and `index` counts them from 0."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More text of a call's arguments, which are JSON in the end."""

    index: int
    text: str


Piece = Reasoning | Content | ToolCallStart | ToolCallArguments


@dataclass(slots=True)
class ToolCall:
    """A call of a function; `arguments` is JSON text."""

    call_id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class ChatMessage:
    """An answer in one piece."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def extend(self, pieces: Iterable[Piece]) -> None:
        """Append what follows."""
        for piece in pieces:
            match piece:
                case Reasoning(text):
                    self.reasoning += text
                case Content(text):
                    self.content += text
                case ToolCallStart(_, call_id, name):
                    self.tool_calls.append(ToolCall(call_id, name))
                case ToolCallArguments(index, text):
                    self.tool_calls[index].arguments += text

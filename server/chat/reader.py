"""Reads one choice's text as it grows: reasoning first, then the answer with its tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from server.chat.pieces import Content, Piece, Reasoning, ToolCallStart

if TYPE_CHECKING:
    from server.chat.reasoning import ReasoningSplitter


class ToolParser(Protocol):
    """Finds the tool calls in one choice's answer."""

    def push(self, text: str, *, final: bool) -> list[Piece]:
        """Take more text of the answer; return what is certain by now, as content and tool calls. `final`: all."""

    @property
    def has_ended(self) -> bool:
        """Whether the answer has its only call, and nothing that follows is read."""


class ChatReader:
    """One choice's text so far, as pieces.

    Attributes:
        has_tool_calls: whether a tool call has begun.
    """

    def __init__(self, reasoning: ReasoningSplitter | None, tools: ToolParser | None) -> None:
        """None leaves the one or the other in the content."""
        self._reasoning, self._tools = reasoning, tools
        self.has_tool_calls = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing that follows is read."""
        return self._tools is not None and self._tools.has_ended

    def push(self, text: str, *, final: bool) -> list[Piece]:
        """Take more text; return the pieces that are certain by now, none of them empty. `final`: all that is left."""
        reasoning, answer = self._reasoning.push(text, final=final) if self._reasoning else ("", text)
        pieces: list[Piece] = [Reasoning(reasoning)] if reasoning else []
        if self._tools is not None:
            pieces += self._tools.push(answer, final=final)
        elif answer:
            pieces.append(Content(answer))
        self.has_tool_calls |= any(isinstance(piece, ToolCallStart) for piece in pieces)
        return pieces

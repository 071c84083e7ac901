"""What answers of the Messages API look like, for the OpenAPI document alone: nothing is validated against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from server.answers import AT_TIMES
from server.http.openapi import errors


class Text(BaseModel):
    """A block: the answer's text."""

    type: Literal["text"]
    text: str


class ThinkingText(BaseModel):
    """A block: the model's reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUse(BaseModel):
    """A block: a call of one of the request's tools."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ThinkingTokens(BaseModel):
    """Of the output's tokens."""

    thinking_tokens: int


class MessageUsage(BaseModel):
    """How many tokens there were; cached ones of the input are counted apart."""

    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    service_tier: Literal["standard"]


class MessageObject(BaseModel):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Text | ThinkingText | ToolUse]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded", "refusal"
    ]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """The tokens of the prompt."""

    input_tokens: int


class MessagesErrorDetail(BaseModel):
    """What is wrong."""

    type: str
    message: str
    details: dict[str, str] = AT_TIMES


class MessagesError(BaseModel):
    """Anthropic's error body."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str | None = None


ERRORS = errors(MessagesError)

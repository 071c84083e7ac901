"""What answers of the Responses API look like, for the OpenAPI document alone: nothing is validated against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from server.answers import AT_TIMES, TokenReport

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """A message's text."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenReport]


class OutputMessage(BaseModel):
    """An item: the answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class ReasoningPart(BaseModel):
    """Reasoning, or its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningOutput(BaseModel):
    """An item: the model's reasoning. `summary` is filled if it was asked for, else `content`."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[ReasoningPart]
    content: list[ReasoningPart] = AT_TIMES
    encrypted_content: str = AT_TIMES


class OutputFunctionCall(BaseModel):
    """An item: a call of one of the request's functions."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class InputTokensDetails(BaseModel):
    """Of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    """Of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """How many tokens there were."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Incomplete(BaseModel):
    """Why the answer is not whole."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseObject(BaseModel):
    """A response. Fields of the request come back in it as they were understood."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    error: dict[str, Any] | None
    incomplete_details: Incomplete | None
    model: str
    output: list[OutputMessage | ReasoningOutput | OutputFunctionCall]
    usage: ResponseUsage | None
    store: bool
    background: Literal[False]
    instructions: str | None
    previous_response_id: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    parallel_tool_calls: bool
    metadata: dict[str, str]
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    reasoning: dict[str, str | None]
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    truncation: Literal["auto", "disabled"]
    service_tier: Literal["default"]
    user: str | None
    prompt_cache_key: str | None
    safety_identifier: str | None


class DeletedResponse(BaseModel):
    """What was forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(BaseModel):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class InputTokens(BaseModel):
    """The tokens of the prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int

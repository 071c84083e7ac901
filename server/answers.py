"""What answers of OpenAI's completions look like, for the OpenAPI document alone: nothing is validated against it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

AT_TIMES: Any = Field(default_factory=lambda: None)  # a field that not every answer has, and that is never null


class PromptTokensDetails(BaseModel):
    """Of the prompts' tokens."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Of the choices' tokens; in chat alone."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """How many tokens there were."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = AT_TIMES


class PromptToken(BaseModel):
    """A token with its logprob, and its rank among all tokens."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]


class TextLogprobs(BaseModel):
    """One entry for each token. An echoed prompt's first token has no logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """A text. The last three fields are there if the request asks for them."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None
    prompt_logprobs: PromptLogprobs = AT_TIMES
    token_ids: list[int] = AT_TIMES
    prompt_token_ids: list[int] = AT_TIMES


class Completion(BaseModel):
    """Texts; also a stream's chunk, where each choice has what is new of its text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage


class TokenLogprob(BaseModel):
    """A token with its logprob; `bytes` are its text's."""

    token: str
    logprob: float
    bytes: list[int]


class TokenReport(TokenLogprob):
    """A token of a choice, and the likeliest tokens in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """One entry for each token of the choice, reasoning included."""

    content: list[TokenReport]
    refusal: None


class CalledFunction(BaseModel):
    """A function, and its arguments as JSON text."""

    name: str
    arguments: str


class Call(BaseModel):
    """A call of one of the request's functions."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    """The answer. Reasoning, which has two names, and calls are there if the model wrote any.

    Attributes:
        function_call: instead of `tool_calls`, where the request has `functions`.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = AT_TIMES
    reasoning: str = AT_TIMES
    tool_calls: list[Call] = AT_TIMES
    function_call: CalledFunction = AT_TIMES


class ChatChoice(BaseModel):
    """A message."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call", "content_filter"]
    token_ids: list[int] = AT_TIMES


class ChatCompletion(BaseModel):
    """Messages. The last two fields are there if the request asks for them."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    prompt_logprobs: PromptLogprobs = AT_TIMES
    prompt_token_ids: list[int] = AT_TIMES

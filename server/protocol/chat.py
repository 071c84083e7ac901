"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from server.admission import estimate_tokens
from server.protocol.fields import fault
from server.protocol.generation import MAX_LOGPROBS, GenerationRequest, Limits
from server.protocol.messages import Message
from server.protocol.reasoning import ReasoningFields
from server.protocol.tools import ToolFields

_RESERVED_VARIABLES = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}  # of chat templates


class ChatCompletionRequest(ToolFields, ReasoningFields, GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31, description="OpenAI's older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31, description="default: what the context leaves")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field({}, max_length=64, description="variables for the chat template")

    @model_validator(mode="after")
    def _checks(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("top_logprobs", "'top_logprobs' goes with 'logprobs': true only")
        if reserved := _RESERVED_VARIABLES & self.chat_template_kwargs.keys():
            raise fault("chat_template_kwargs", f"'chat_template_kwargs' must not set {sorted(reserved)}")
        return self

    def estimate_tokens(self) -> list[int]:
        texts = (*(message.text for message in self.messages), *self.tool_texts())
        return [sum(map(estimate_tokens, texts))]

    def _limits(self) -> Limits:
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return Limits(max_tokens, (self.top_logprobs or 0) if self.logprobs else None)

    @property
    def param_names(self) -> dict[str | None, str]:
        newer = self.max_completion_tokens is not None or self.max_tokens is None
        return {"prompt": "messages", "max_tokens": "max_completion_tokens" if newer else "max_tokens"}

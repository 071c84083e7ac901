"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from server.admission import estimate_tokens
from server.protocol.fields import fault
from server.protocol.generation import GenerationRequest
from server.protocol.messages import Message
from server.protocol.reasoning import ReasoningFields
from server.protocol.sampling import MAX_LOGPROBS, Limits
from server.protocol.tools import ToolFields

_MAX_CODE_PARTS = 4096  # in all; each is looked for in the prompt
_RESERVED_VARIABLES = {  # of chat templates
    *("messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"),
}


class ChatCompletionRequest(ToolFields, ReasoningFields, GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31, description="OpenAI's older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31, description="default: what the context leaves")
    logprobs: bool = Field(False, description="report the logprob of each token")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="alternatives to report for each token")
    add_generation_prompt: bool = Field(
        True, description="end the prompt with the beginning of an answer; without a value false, to continue a message"
    )
    continue_final_message: bool = Field(False, description="let the output continue the last message")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="for templates that read it, or that switch thinking on and off"
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="for templates that read it")
    chat_template_kwargs: dict[str, Any] = Field({}, max_length=64, description="variables for the chat template")

    @model_validator(mode="after")
    def _checks(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("top_logprobs", "'top_logprobs' goes with 'logprobs': true only")
        if self.continue_final_message and self.adds_generation_prompt:
            message = "'continue_final_message' does not go with 'add_generation_prompt': true"
            raise fault("continue_final_message", message)
        if self.continue_final_message and not self.messages[-1].text:
            raise fault("continue_final_message", "the last message has no text to continue")
        if (count := sum(message.num_code_parts for message in self.messages)) > _MAX_CODE_PARTS:
            raise fault("messages", f"'messages' have {count} parts of type code; at most {_MAX_CODE_PARTS} are taken")
        if reserved := _RESERVED_VARIABLES & self.chat_template_kwargs.keys():
            raise fault("chat_template_kwargs", f"'chat_template_kwargs' must not set {sorted(reserved)}")
        return self

    @property
    def adds_generation_prompt(self) -> bool:
        """Whether the prompt ends with the beginning of an answer."""
        if "add_generation_prompt" in self.model_fields_set:
            return self.add_generation_prompt
        return not self.continue_final_message

    def estimate_tokens(self) -> list[int]:
        texts = (*(message.text for message in self.messages), *self.tool_texts())
        return [sum(map(estimate_tokens, texts))]

    def _limits(self) -> Limits:
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = self._logprobs((self.top_logprobs or 0) if self.logprobs else None)
        return Limits(max_tokens, logprobs, self.prompt_logprobs)

    @property
    def param_names(self) -> dict[str | None, str]:
        newer = self.max_completion_tokens is not None or self.max_tokens is None
        return {"prompt": "messages", "max_tokens": "max_completion_tokens" if newer else "max_tokens"}

"""The bodies of POST /v1/messages and /v1/messages/count_tokens, and the chat completion requests they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from engine.errors import RequestError
from server.chat.translated import EXTENSIONS, TranslatedRequest, chat_fields
from server.messages.blocks import AnyText, CacheControl, InputMessage, Json, ToolName, text_of
from server.protocol import ChatCompletionRequest, Strict, fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.protocol import SamplingParams

_SAME = ("temperature", "top_p", *EXTENSIONS)

if TYPE_CHECKING:
    _ChatFields = Strict
else:
    _ChatFields = chat_fields(*_SAME)


class Tool(Strict):
    """A tool of the client's. `allowed_callers`, `defer_loading`: only the values that ask for nothing.

    `eager_input_streaming` asks for what is done anyway: a call's input is streamed as the model writes it.
    """

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: Json
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None

    def for_chat(self) -> Json:
        """Return the tool as chat completions have it."""
        function = self.model_dump(include={"name", "description", "strict"}, exclude_none=True)
        return {"type": "function", "function": {**function, "parameters": self.input_schema}}


def _is_custom(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise ValueError(f"the type {kind!r} is not supported: this server runs no tools of its own, the client does")
    return value


class ToolChoice(Strict):
    """tool_choice: whether a tool is used, which one, and whether several may be."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _is_whole(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("'name' goes with the type tool, which needs it")
        return self

    def for_chat(self) -> str | Json:
        """Return the choice as chat completions have it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class ThinkingOn(Strict):
    """thinking: the model is to think. `budget_tokens` is only checked: max_tokens is the bound."""

    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1024)
    display: Literal["summarized"] | None = None


class ThinkingSwitch(Strict):
    """thinking: the model is not to think, or decides by itself."""

    type: Literal["disabled", "adaptive"]
    display: Literal["summarized"] | None = None


class OutputFormat(Strict):
    """output_config.format: JSON of this schema."""

    type: Literal["json_schema"]
    json_schema: Json = Field(alias="schema")


class OutputConfig(Strict):
    """output_config: how much effort to spend, and the answer's form."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Strict):
    """metadata: who the request is for; nothing depends on it."""

    user_id: Annotated[str, Field(max_length=1024)] | None = None


class _ClippedRequest(ChatCompletionRequest):
    """A chat completion request whose answer may also end where the context does, before max_completion_tokens."""

    def sampling(self, room: int, defaults: Mapping[str, Any] | None = None) -> SamplingParams:
        sampling = super().sampling(room, defaults)
        return msgspec.structs.replace(sampling, max_tokens=max(1, min(sampling.max_tokens, room)))


class CountRequest(TranslatedRequest):
    """POST /v1/messages/count_tokens: what makes the prompt."""

    chat_type = _ClippedRequest
    names = {  # noqa: RUF012 - a ClassVar of the base
        "max_completion_tokens": "max_tokens",
        "prompt": "messages",
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        r"response_format\.json_schema": "output_config.format",
        "reasoning_effort": "output_config.effort",
        r"(tools\[\d+\])\.function": r"\1",
        r"(tools\[\d+\])\.function\.parameters": r"\1.input_schema",
        "parallel_tool_calls": "tool_choice",
        "continue_final_message": "messages",
        "user": "metadata",
    }
    neutral_values = {"service_tier": ("auto", "standard_only"), "speed": ("standard",)}  # noqa: RUF012

    model: Annotated[str, Field(max_length=1024)] | None = None
    messages: list[InputMessage] = Field(min_length=1, max_length=4096, fail_fast=True)
    system: str | Annotated[list[AnyText], Field(fail_fast=True)] = ""
    tools: list[Annotated[Tool, BeforeValidator(_is_custom)]] = Field([], max_length=512, fail_fast=True)
    tool_choice: ToolChoice | None = None
    thinking: ThinkingOn | ThinkingSwitch | None = Field(None, discriminator="type")
    output_config: OutputConfig = OutputConfig()
    cache_control: CacheControl | None = None

    def to_chat(self) -> ChatCompletionRequest:
        """Return the chat completion request that this one stands for.

        Raises:
            RequestError: naming the field at fault.
        """
        return self.chat_request(self._chat_fields())

    def _chat_fields(self) -> Json:
        system = text_of(self.system)
        head = [{"role": "system", "content": system}] if system else []
        answers = self.messages[-1].role == "assistant"  # the beginning of the answer is given
        schema = self.output_config.format
        choice = self.tool_choice
        asks_for_calls = choice is not None and (self.tools or choice.type in ("any", "tool"))
        return {
            "model": self.model,
            "messages": head + [chat for message in self.messages for chat in message.for_chat()],
            "continue_final_message": True if answers else None,
            "add_generation_prompt": False if answers else None,
            "tools": [tool.for_chat() for tool in self.tools] or None,
            "tool_choice": choice.for_chat() if choice is not None and asks_for_calls else None,
            "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
            "reasoning_effort": self.output_config.effort,
            "thinking": {"type": self.thinking.type} if self.thinking and self.thinking.type != "adaptive" else None,
            "response_format": _response_format(schema.json_schema) if schema is not None else None,
        }


class MessagesRequest(CountRequest, _ChatFields):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, lt=1 << 31)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field([], max_length=16)
    stream: bool = False
    metadata: Metadata = Metadata()
    thread: Annotated[
        Json | None, WithJsonSchema({"type": "null", "description": "conversations are not held here"})
    ] = None

    def check_thread(self) -> None:
        """Refuse to hold the conversation, in the words after which Anthropic's client sends it whole.

        Raises:
            RequestError: `thread` is set.
        """
        if self.thread is not None:
            message = "Unsupported parameter: 'thread' is not implemented by this server; send the whole conversation."
            raise RequestError(message, "thread", "thread_unsupported_request")

    @model_validator(mode="after")
    def _check_budget(self) -> MessagesRequest:
        if isinstance(self.thinking, ThinkingOn) and self.thinking.budget_tokens >= self.max_tokens:
            raise fault("thinking", "'thinking.budget_tokens' must be less than 'max_tokens'")
        return self

    def _chat_fields(self) -> Json:
        return {
            **super()._chat_fields(),
            **self.passed_on(_SAME),
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "stream": self.stream,
            "user": self.metadata.user_id,
        }


def _response_format(schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

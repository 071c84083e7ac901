"""The body of POST /v1/responses, and the chat completion request that it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from server.chat.translated import EXTENSIONS, TranslatedRequest, chat_fields
from server.protocol import Strict, fault
from server.responses.items import AnyItem, InputItem, ItemId, Json, MessageItem, chat_messages

if TYPE_CHECKING:
    from server.protocol import ChatCompletionRequest

_SAME = ("temperature", "top_p", "user", "stop", "prompt_cache_key", *EXTENSIONS)
_FUNCTION_ONLY = "this server runs no tools of its own; it takes function tools, which the client runs"

if TYPE_CHECKING:
    _ChatFields = Strict
else:
    _ChatFields = chat_fields(*_SAME)


class FunctionTool(Strict):
    """A function of the client's. `allowed_callers`, `defer_loading`: only the values that ask for nothing."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None

    def for_chat(self) -> Json:
        """Return the tool as chat completions have it."""
        function = self.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
        return {"type": "function", "function": function}


def _is_function(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind != "function":
        raise ValueError(f"the type {kind!r} is not supported: {_FUNCTION_ONLY}")
    return value


class NamedFunction(Strict):
    """tool_choice: this function."""

    type: Literal["function"]
    name: str

    def for_chat(self) -> Json:
        """Return the function's name as chat completions have it."""
        return {"type": "function", "function": {"name": self.name}}


class AllowedTools(Strict):
    """tool_choice: one of these functions, or (`auto`) none."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[NamedFunction, BeforeValidator(_is_function)]] = Field(min_length=1, max_length=512)

    def for_chat(self) -> Json:
        """Return the choice as chat completions have it."""
        return {"type": self.type, "allowed_tools": {"mode": self.mode, "tools": [t.for_chat() for t in self.tools]}}


def _is_choice(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") not in ("function", "allowed_tools"):
        raise ValueError(f"the type {value.get('type')!r} is not supported: {_FUNCTION_ONLY}")
    return value


class TextFormat(Strict):
    """text.format: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    json_schema: Json | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> TextFormat:
        is_schema = self.type == "json_schema"
        if is_schema != (self.name is not None and self.json_schema is not None):
            raise ValueError("'name' and 'schema' go with the type json_schema, which needs both")
        if not is_schema and (self.description is not None or self.strict is not None):
            raise ValueError("'description' and 'strict' go with the type json_schema only")
        return self

    def for_chat(self) -> Json | None:
        """Return the format as chat completions' response_format."""
        if self.type != "json_schema":
            return None if self.type == "text" else {"type": self.type}
        schema = self.model_dump(include={"name", "description", "strict"}, exclude_none=True)
        return {"type": self.type, "json_schema": {**schema, "schema": self.json_schema}}


class TextOptions(Strict):
    """text: the answer's form, and how long-winded it is to be."""

    format: TextFormat = TextFormat(type="text", schema=None)
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Strict):
    """reasoning: how much of it, and whether it comes as a summary. A summary here is the whole reasoning.

    `generate_summary` is the older name of `summary`; `context` and `mode` take only what asks for nothing.
    """

    effort: Annotated[str, Field(max_length=32)] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class StreamOptions(Strict):
    """stream_options: `include_obfuscation` would pad events, which this server never does."""

    include_obfuscation: Literal[False] | None = None


class InputTokensRequest(TranslatedRequest):
    """POST /v1/responses/input_tokens: what makes the prompt."""

    names = {  # noqa: RUF012 - a ClassVar of the base
        "messages": "input",
        "prompt": "input",
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
        r"response_format\.json_schema": "text.format",
        r"(tools\[\d+\])\.function": r"\1",
        "reasoning_effort": "reasoning.effort",
        "verbosity": "text.verbosity",
        "logprobs": "include",
    }

    model: Annotated[str, Field(max_length=1024)] | None = None
    input: str | Annotated[list[AnyItem], Field(min_length=1, max_length=4096, fail_fast=True)]
    instructions: str | None = None
    previous_response_id: ItemId | None = None
    tools: list[Annotated[FunctionTool, BeforeValidator(_is_function)]] = Field([], max_length=512, fail_fast=True)
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedFunction | AllowedTools, BeforeValidator(_is_choice)
    ] = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions = ReasoningOptions()
    truncation: Literal["auto", "disabled"] = "disabled"

    @property
    def items(self) -> list[InputItem]:
        """The input as items."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input

    def to_chat(self, items: list[InputItem]) -> ChatCompletionRequest:
        """Return the chat completion request for a conversation of these items.

        Raises:
            RequestError: naming the field at fault.
        """
        head = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return self.chat_request({"messages": head + chat_messages(items), **self._chat_fields()})

    def _chat_fields(self) -> Json:
        """Return the request without its conversation in chat completions' words."""
        asks_for_calls = bool(self.tools) or self.tool_choice not in ("auto", "none")
        return {
            "model": self.model,
            "response_format": self.text.format.for_chat(),
            "verbosity": self.text.verbosity,
            "reasoning_effort": self.reasoning.effort,
            "tools": [tool.for_chat() for tool in self.tools] or None,
            "tool_choice": self._choice() if asks_for_calls else None,
            "parallel_tool_calls": False if self.tools and not self.parallel_tool_calls else None,
        }

    def _choice(self) -> str | Json:
        choice = self.tool_choice
        return choice if isinstance(choice, str) else choice.for_chat()


class ResponseRequest(InputTokensRequest, _ChatFields):
    """POST /v1/responses."""

    neutral_values = {  # noqa: RUF012
        "background": (False,),
        "context_management": ([],),
        "prompt_cache_options": ({}, {"mode": "implicit"}),
        "prompt_cache_retention": ("in_memory",),
        "service_tier": ("auto", "default"),
    }

    max_output_tokens: int | None = Field(None, ge=1, lt=1 << 31, description="default: what the context leaves")
    max_tool_calls: int | None = Field(None, ge=1, description="of tools that the server runs; it runs none")
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = Field([], max_length=16)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    store: bool = True
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        {}, max_length=16
    )
    safety_identifier: str | None = Field(None, max_length=1024, description="nothing depends on it")
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> ResponseRequest:
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "'stream_options' goes with 'stream': true only")
        return self

    @property
    def reports_logprobs(self) -> bool:
        """Whether the text's tokens are reported: asked for by `include`, or by `top_logprobs` alone."""
        return "message.output_text.logprobs" in self.include or self.top_logprobs is not None

    @property
    def summarises(self) -> bool:
        """Whether reasoning comes as its summary."""
        return (self.reasoning.summary or self.reasoning.generate_summary) is not None

    def _chat_fields(self) -> Json:
        return {
            **super()._chat_fields(),
            **self.passed_on(_SAME),
            "stream": self.stream,
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": True if self.reports_logprobs else None,
            "top_logprobs": self.top_logprobs if self.reports_logprobs else None,
        }

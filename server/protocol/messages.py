"""A chat's messages as clients send them: OpenAI's fields, and those that clients copy from an answer into the next.

What a template gets of them is `Message.for_template`. What tool calls mean is not said here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from server.protocol.fields import Strict, fault
from server.protocol.schema import NULL, split

if TYPE_CHECKING:
    from collections.abc import Callable

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
_OF_ASSISTANTS: dict[str, Any] = {
    **{name: {"enum": [None, ""]} for name in ("reasoning_content", "reasoning", "refusal")},
    "tool_calls": {"enum": [None, []]},
    "function_call": NULL,
}
_BY_ROLE: list[dict[str, Any]] = [  # for the schema alone, as the next
    {"role": {"enum": ["system", "developer", "user", "function"]}, "content": None, **_OF_ASSISTANTS},
    {"role": {"const": "tool"}, "content": None, "tool_call_id": None, **_OF_ASSISTANTS},
    {"role": {"const": "assistant"}},
]
_BY_TYPE: list[dict[str, Any]] = [
    {"type": {"const": "text"}, "text": None, "refusal": NULL, "code": NULL},
    {"type": {"const": "code"}, "text": None, "refusal": NULL, "code": NULL},
    {"type": {"const": "code"}, "code": None, "refusal": NULL, "text": NULL},
    {"type": {"const": "refusal"}, "refusal": None, "text": NULL, "code": NULL},
]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class ContentPart(Strict):
    """A piece of a message's content: text, code, or an assistant's refusal.

    Attributes:
        code: what a part of type code may have in place of `text`.
        cache_control: Anthropic's mark of a prefix to cache. The prefix cache keeps every prefix, marked or not.
    """

    model_config = ConfigDict(json_schema_extra=lambda schema: split(schema, _BY_TYPE))

    type: Literal["text", "code", "refusal"]
    text: str | None = None
    code: str | None = None
    refusal: str | None = None
    cache_control: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> ContentPart:
        fields = ("text", "code") if self.type == "code" else (self.type,)
        said = [name for name in ("text", "code", "refusal") if getattr(self, name) is not None]
        if not set(fields) & set(said):
            raise ValueError(f"'{fields[0]}' is missing")
        if len(said) > 1 or said[0] not in fields:
            raise ValueError(f"{' and '.join(map(repr, said))} do not go together")
        return self

    @property
    def words(self) -> str:
        """The text, whichever of these it is."""
        return self.text or self.code or self.refusal or ""


class FunctionCall(Strict):
    """A function's name, and its arguments as JSON text."""

    name: Name
    arguments: str


class ToolCall(Strict):
    """A call that an assistant made; `index` is what a stream's deltas have and some clients send back."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


Content = str | Annotated[list[ContentPart], Field(fail_fast=True)]


class Message(Strict):
    """One message.

    Attributes:
        content: an assistant's may be left out, as answers of tool calls alone do.
        name: of the author, or of the function whose result this is; templates may read it.
        reasoning_content: an assistant's thinking, as answers give it; `reasoning` is its other name.
        annotations, audio, parsed: parts of an answer that clients send back; they say nothing to a model of text.
    """

    model_config = ConfigDict(json_schema_extra=lambda schema: split(schema, _BY_ROLE))

    role: Role
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=512, fail_fast=True)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    parsed: Any = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        for field in ("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal"):
            if getattr(self, field) and self.role != "assistant":
                raise fault("messages", f"'{field}' is for messages of the role assistant, not {self.role}")
        if self.role == "tool" and self.tool_call_id is None:
            raise fault("messages", "a message of the role tool needs its 'tool_call_id'")
        if self.content is None and self.role != "assistant":
            raise fault("messages", f"a message of the role {self.role} needs its 'content'")
        return self

    @property
    def thinking(self) -> str | None:
        """An assistant's reasoning, by either name."""
        return self.reasoning_content or self.reasoning

    @property
    def text(self) -> str:
        """The content as one string."""
        return self._written(str)

    def texts(self) -> list[str]:
        """Return all that the message says, in its several fields."""
        calls = [call.function for call in self.tool_calls or ()] + ([self.function_call] if self.function_call else [])
        said = (self.text, self.thinking, self.name, *(text for call in calls for text in (call.name, call.arguments)))
        return [text for text in said if text]

    @property
    def num_code_parts(self) -> int:
        """Parts of the content that are code."""
        return sum(part.type == "code" for part in self.content) if isinstance(self.content, list) else 0

    def for_template(self, code: Callable[[str], str] = str) -> dict[str, Any]:
        """Return the message as templates expect it: the content is one string, and what is not there is left out.

        `code` gets the text of each part that is code, and returns what stands in its place.
        """
        message: dict[str, Any] = {"role": self.role, "content": self._written(code)}
        if self.name is not None:
            message["name"] = self.name
        if calls := self.tool_calls or ([ToolCall(function=self.function_call)] if self.function_call else []):
            message["tool_calls"] = [call.model_dump(exclude={"index"}, exclude_none=True) for call in calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.thinking:
            message["reasoning_content"] = self.thinking
        return message

    def _written(self, code: Callable[[str], str]) -> str:
        if isinstance(self.content, list):
            return "".join(code(part.words) if part.type == "code" else part.words for part in self.content)
        return self.content or self.refusal or ""

"""The items that a conversation is made of, as requests bring them and as they are stored, and their chat messages.

Reasoning, text and function calls of one turn are several items, and one chat message.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from server.protocol import Strict
from server.protocol.fields import known_type

Json = dict[str, Any]
ItemId = Annotated[str, Field(min_length=1, max_length=128)]
CallId = Annotated[str, Field(min_length=1, max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"] | None


class Part(Strict):
    """A piece of a message: text, or an assistant's refusal.

    Attributes:
        annotations, logprobs: of an answer's text that comes back; they say nothing to a model.
        prompt_cache_breakpoint: where a cached prefix may end. The prefix cache keeps every prefix, marked or not.
    """

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: Json | None = None

    @model_validator(mode="after")
    def _has_what_it_says(self) -> Part:
        if (self.refusal if self.type == "refusal" else self.text) is None:
            raise ValueError(f"a part of the type {self.type} lacks its text")
        return self

    @property
    def words(self) -> str:
        """The text, whichever of the two it is."""
        return self.text or self.refusal or ""


def _is_part(value: Any) -> Any:
    return known_type(value, ("input_text", "output_text", "text", "refusal"))


Content = str | Annotated[list[Annotated[Part, BeforeValidator(_is_part)]], Field(fail_fast=True)]


def text_of(content: str | list[Part]) -> str:
    """Return a content as one string."""
    return content if isinstance(content, str) else "".join(part.words for part in content)


class MessageItem(Strict):
    """A message; `phase` is OpenAI's mark of an assistant's message, and only null is taken."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: ItemId | None = None
    status: Status = None
    phase: None = None


class FunctionCallItem(Strict):
    """A call that an assistant made; the fields that must be null belong to tools of OpenAI's own."""

    type: Literal["function_call"]
    call_id: CallId
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str
    id: ItemId | None = None
    status: Status = None
    caller: None = None
    namespace: None = None


class FunctionOutputItem(Strict):
    """A call's result."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    id: ItemId | None = None
    status: Status = None
    name: str | None = None
    caller: None = None
    namespace: None = None


class ReasoningText(Strict):
    """A piece of reasoning, or of its summary."""

    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class ReasoningItem(Strict):
    """An assistant's thinking; `encrypted_content` is what `sealed` made of it."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: list[ReasoningText] = Field([])
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status = None

    @model_validator(mode="after")
    def _opens(self) -> ReasoningItem:
        if self.encrypted_content is not None:
            opened(self.encrypted_content)
        return self

    @property
    def text(self) -> str:
        """The thinking: itself, or what stands for it."""
        if not self.content and self.encrypted_content is not None:
            return opened(self.encrypted_content)
        return "".join(part.text for part in self.content or self.summary)


class ItemReference(Strict):
    """An item that an earlier response has, by its id."""

    type: Literal["item_reference"]
    id: ItemId


InputItem = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem | ItemReference
_TYPES = tuple(get_args(item.model_fields["type"].annotation)[0] for item in get_args(InputItem))


def is_item(value: Any) -> Any:
    """Validate an item's type first; a message and a reference may come without."""
    default = "message" if isinstance(value, dict) and "role" in value else "item_reference"
    return known_type(value, _TYPES, default)


AnyItem = Annotated[Annotated[InputItem, Field(discriminator="type")], BeforeValidator(is_item)]


def sealed(thinking: str) -> str:
    """Return reasoning as an opaque text, for clients that send nothing else back. It is no secret: answers show it."""
    return base64.b64encode(thinking.encode(errors="replace")).decode()


def opened(seal: str) -> str:
    """Return the reasoning that was sealed.

    Raises:
        ValueError: it was not sealed here.
    """
    try:
        return base64.b64decode(seal, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("'encrypted_content' does not come from this server") from None


def chat_messages(items: list[InputItem]) -> list[Json]:
    """Return the chat messages that items stand for. No reference may be left among them."""
    messages: list[Json] = []
    turn: Json | None = None  # the assistant's message that further items may belong to
    for item in items:
        if isinstance(item, FunctionOutputItem):
            output = {"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)}
            messages.append(output if item.name is None else {**output, "name": item.name})
            turn = None
            continue
        if isinstance(item, MessageItem) and item.role != "assistant":
            messages.append({"role": item.role, "content": text_of(item.content)})
            turn = None
            continue
        if turn is None or not _fits(turn, item):
            turn = {"role": "assistant"}
            messages.append(turn)
        _add(turn, item)
    for message in messages:
        if "reasoning_content" in message:
            message["reasoning_content"] = "".join(message["reasoning_content"])
    return messages


def _fits(turn: Json, item: InputItem) -> bool:
    """Whether an item can belong to the same message: reasoning comes before text, and text before calls."""
    if isinstance(item, ReasoningItem):
        return turn.keys() == {"role", "reasoning_content"}
    return isinstance(item, FunctionCallItem) or not turn.keys() & {"content", "tool_calls"}


def _add(turn: Json, item: InputItem) -> None:
    match item:
        case ReasoningItem():
            turn.setdefault("reasoning_content", []).append(item.text)
        case MessageItem():
            turn["content"] = text_of(item.content)
        case FunctionCallItem():
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            turn.setdefault("tool_calls", []).append(call)
        case _:
            raise AssertionError(f"{type(item).__name__} is not an assistant's")

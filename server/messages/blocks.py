"""The blocks that messages are made of, and the chat messages that they stand for."""

from __future__ import annotations

import itertools
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from server.protocol import Strict, fault
from server.protocol.fields import known_type

Json = dict[str, Any]
ToolName = Annotated[str, Field(min_length=1, max_length=256)]
UseId = Annotated[str, Field(min_length=1, max_length=256)]


class CacheControl(Strict):
    """Where a cached prefix may end. The prefix cache keeps every prefix, marked or not."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Strict):
    """Text. Citations, which answers here never have, must be none."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Strict):
    """An assistant's thinking. Its signature is taken as it is: the text is there to be read."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class DirectCaller(Strict):
    """Who called a tool: the model itself."""

    type: Literal["direct"]


class ToolUseBlock(Strict):
    """A call that an assistant made."""

    type: Literal["tool_use"]
    id: UseId
    name: ToolName
    input: Json
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None

    def for_chat(self) -> Json:
        """Return the call as chat completions have it."""
        function = {"name": self.name, "arguments": json.dumps(self.input, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}


class ToolResultBlock(Strict):
    """A call's result."""

    type: Literal["tool_result"]
    tool_use_id: UseId
    content: str | Annotated[list[AnyText], Field(fail_fast=True)] | None = None
    is_error: bool = False
    cache_control: CacheControl | None = None
    toolset_name: None = None

    @property
    def text(self) -> str:
        """The result as the model reads it; a failure begins with a word that says so."""
        text = text_of(self.content or "")
        return f"Error: {text}" if self.is_error else text


def _is_text(value: Any) -> Any:
    return known_type(value, ("text",))


AnyText = Annotated[TextBlock, BeforeValidator(_is_text)]
Block = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock
_TYPES = tuple(get_args(block.model_fields["type"].annotation)[0] for block in get_args(Block))
ToolResultBlock.model_rebuild()


def _is_block(value: Any) -> Any:
    return known_type(value, _TYPES)


AnyBlock = Annotated[Annotated[Block, Field(discriminator="type")], BeforeValidator(_is_block)]
_ALLOWED: dict[str, tuple[type[Block], ...]] = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


class InputMessage(Strict):
    """A message of one role."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[AnyBlock], Field(fail_fast=True)]

    @model_validator(mode="after")
    def _fits_its_role(self) -> InputMessage:
        for block in self.blocks:
            if not isinstance(block, _ALLOWED[self.role]):
                raise fault("messages", f"a message of the role {self.role} cannot have a block of type {block.type}")
        return self

    @property
    def blocks(self) -> list[Block]:
        """The content as blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    def for_chat(self) -> list[Json]:
        """Return the chat messages that the message stands for: each tool's result is one of its own."""
        if self.role == "assistant":
            return [self._answer()]
        messages: list[Json] = []
        for is_text, group in itertools.groupby(self.blocks, key=lambda block: isinstance(block, TextBlock)):
            if is_text:
                texts = (block.text for block in group if isinstance(block, TextBlock))
                messages.append({"role": self.role, "content": "".join(texts)})
            else:
                results = (block for block in group if isinstance(block, ToolResultBlock))
                messages += [{"role": "tool", "tool_call_id": r.tool_use_id, "content": r.text} for r in results]
        return messages

    def _answer(self) -> Json:
        blocks = self.blocks
        message: Json = {"role": "assistant", "content": text_of([b for b in blocks if isinstance(b, TextBlock)])}
        if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
            message["reasoning_content"] = "".join(thoughts)
        if calls := [block.for_chat() for block in blocks if isinstance(block, ToolUseBlock)]:
            message["tool_calls"] = calls
        return message


def text_of(content: str | list[TextBlock]) -> str:
    """Return a content of text as one string."""
    return content if isinstance(content, str) else "".join(block.text for block in content)

"""Requests of a text, in a field of the API's own, or of a conversation as POST /v1/chat/completions takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from server.chat.translated import TranslatedRequest
from server.protocol import Message, fault
from server.protocol.schema import NULL, as_taken, split

if TYPE_CHECKING:
    from server.protocol import ChatCompletionRequest


class TextOrChatRequest(TranslatedRequest):
    """Either of both.

    Attributes:
        text_field: the field that has the text.
        of_chats: the fields that go with a conversation alone.
    """

    text_field: ClassVar[str]
    of_chats: ClassVar[tuple[str, ...]] = (
        *("messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    )
    model_config = ConfigDict(json_schema_extra=lambda schema, cls: cls.write_either(schema))

    messages: list[Message] | None = Field(
        None, min_length=1, max_length=4096, fail_fast=True, description="a conversation in the place of a text"
    )
    add_special_tokens: bool | None = Field(None, description="default: true for texts, false for a conversation")
    add_generation_prompt: bool | None = Field(None, description="end with the beginning of an answer")
    continue_final_message: bool | None = Field(None, description="leave the last message open")
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=64, description="for the chat template")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> TextOrChatRequest:
        text = getattr(self, self.text_field)
        if (text is None) == (self.messages is None):
            raise fault(self.text_field, f"a request needs either '{self.text_field}' or 'messages'")
        if text is not None and (foreign := next((n for n in self.of_chats if getattr(self, n) is not None), None)):
            raise fault(foreign, f"'{foreign}' goes with 'messages' only")
        return self

    def to_chat(self) -> ChatCompletionRequest:
        """Return the chat completion request whose prompt is the conversation."""
        return self.chat_request(self.passed_on(("model", *self.of_chats)))

    @classmethod
    def write_either(cls, schema: dict[str, Any]) -> None:
        """Say in a schema that it is one of both."""
        as_taken(schema, cls.neutral_values)
        text = {cls.text_field: None, **dict.fromkeys(cls.of_chats, NULL)}
        split(schema, [text, {"messages": None, cls.text_field: NULL}])

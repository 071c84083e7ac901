"""The half of a chat call that no API differs in: from messages to the prompt, from the output to a message's pieces.

A chat completion's request is the form that all chat APIs translate theirs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import RequestError
from server.chat.pieces import ChatMessage, Piece
from server.chat.reader import ChatReader
from server.chat.reasoning import ReasoningSplitter, starts_inside
from server.pipeline import ApiCall
from server.protocol import ChatCompletionRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.protocol import SamplingParams
    from server.choice_text import Delta
    from server.state import ServerState


class ChatCall(ApiCall[ChatCompletionRequest]):
    """The prompt is the rendered conversation; a choice is a message."""

    add_special_tokens = False  # the template writes BOS itself

    def __init__(self, server: ServerState, body: ChatCompletionRequest) -> None:
        super().__init__(server, body)
        self._readers: list[ChatReader] = []

    def validate(self, sampling: SamplingParams) -> None:
        if self.server.tokenizer.chat_template is None:
            message = "This model has no chat template: start the server with --chat-template, or use /v1/completions."
            raise RequestError(message, "messages")
        self.server.check_prompt("", sampling)  # the conversation is rendered later

    async def prompts(self) -> Sequence[str | list[int]]:
        text = self._render()
        self._readers = [self._reader(text) for _ in range(self.body.n)]
        return [text]

    def read(self, delta: Delta) -> list[Piece]:
        """Return what a delta adds to its choice's message. Each delta is read once, in order."""
        return self._readers[delta.choice].push(delta.text, final=delta.finish_reason is not None)

    def message(self, choice: Delta) -> ChatMessage:
        """Return a whole choice's message."""
        message = ChatMessage()
        message.extend(self.read(choice))
        return message

    def finish_reason(self, delta: Delta) -> str | None:
        """Return why the choice ends, in OpenAI's words, once it was read."""
        if delta.finish_reason == "stop" and self._readers[delta.choice].has_tool_calls:
            return "tool_calls"
        return delta.finish_reason

    def _render(self) -> str:
        template = self.server.tokenizer.chat_template
        assert template is not None
        messages = [message.for_template() for message in self.body.messages]
        add_generation_prompt = self.body.add_generation_prompt
        return template.render(messages, add_generation_prompt=add_generation_prompt, **self.body.chat_template_kwargs)

    def _reader(self, prompt: str) -> ChatReader:
        splits = self.server.config.reasoning != "none"
        return ChatReader(ReasoningSplitter(inside=starts_inside(prompt)) if splits else None, None)

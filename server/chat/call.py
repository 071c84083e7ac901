"""The half of a chat call that no API differs in: from messages to the prompt, from the output to a message's pieces.

A chat completion's request is the form that all chat APIs translate theirs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.chat import grammar
from server.chat.conversation import Conversation
from server.chat.pieces import ChatMessage, Piece, Reasoning
from server.chat.reader import ChatReader
from server.chat.reasoning import MARKERS, ReasoningSplitter, starts_inside, stays_inside
from server.chat.reasoning_tokens import ReasoningTokens
from server.chat.tools.json_text import is_json_object
from server.pipeline import ApiCall, Json, usage
from server.protocol import ChatCompletionRequest
from server.protocol.fields import strings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.protocol import SamplingParams
    from server.chat.grammar import Reasons
    from server.chat.tools.use import ToolUse
    from server.generation import Generation
    from server.inputs import Prompt
    from server.state import ServerState
    from server.text.choice_text import Delta


class ChatCall(ApiCall[ChatCompletionRequest]):
    """The prompt is the rendered conversation; a choice is a message."""

    add_special_tokens = False  # the template writes BOS itself

    def __init__(self, server: ServerState, body: ChatCompletionRequest) -> None:
        super().__init__(server, body)
        self._is_inside = False
        self._readers: list[ChatReader] = []
        self._watching: list[ChatReader] = []  # answers whose first call ends them
        self._reasoning_tokens: list[ReasoningTokens] = []

    def validate(self, sampling: SamplingParams) -> None:
        self._conversation = Conversation(self.server, self.body)
        self.server.check_prompt("", sampling)  # the conversation is rendered later

    async def prompts(self) -> Sequence[Prompt]:
        prompt = await self._conversation.render()
        self._is_inside = starts_inside(self._conversation.text) or (
            self.body.continue_final_message and stays_inside(self.body.messages[-1].text)
        )
        self._readers = [self._reader() for _ in range(self.body.num_sequences)]
        if self._tools.is_one_call_enough:
            self._watching = [self._reader() for _ in self._readers]
        if self._splits_reasoning:
            detokenizer = self.server.tokenizer.detokenizer
            self._reasoning_tokens = [
                ReasoningTokens(self._splitter(), detokenizer(keep=self.kept_special_tokens)) for _ in self._readers
            ]
        return [prompt]

    def texts(self) -> list[str]:
        body = self.body
        of_messages = (text for message in body.messages for text in message.texts())
        return [*of_messages, *body.tool_texts(), *strings_of(body.chat_template_kwargs)]

    @property
    def kept_special_tokens(self) -> frozenset[int]:
        markers = (*MARKERS, *(self._tools.format.markers if self._tools.functions else ()))
        ids = map(self.server.tokenizer.special_id, markers)
        return frozenset(token_id for token_id in ids if token_id is not None)

    @property
    def grammar_field(self) -> str | None:
        guided = self._tools.choice == "required" or (self._tools.guides_free_answers and not self.body.form_field)
        return "tools" if guided else self.body.form_field

    def grammar(self) -> str | None:
        special_id = self.server.tokenizer.special_id
        return grammar.of_answer(self._tools, super().grammar(), self._reasons, special_id)

    @property
    def _reasons(self) -> Reasons:
        if self._is_inside:
            return "inside"
        opened, closed = MARKERS
        template, text = self._conversation.template, self._conversation.text
        return "maybe" if opened in template.source and not text.rstrip().endswith(closed) else "no"

    def is_enough(self, delta: Delta) -> bool:
        if not self._watching:
            return False
        reader = self._watching[delta.choice]
        reader.push(delta.text, final=False)
        return reader.has_ended

    def read(self, delta: Delta) -> list[Piece]:
        """Return what a delta adds to its choice's message. Each delta is read once, in order."""
        if self._reasoning_tokens:
            self._reasoning_tokens[delta.choice].push(delta.token_ids)
        pieces = self._readers[delta.choice].push(delta.text, final=delta.finish_reason is not None)
        return pieces if self.body.include_reasoning else [p for p in pieces if not isinstance(p, Reasoning)]

    def message(self, choice: Delta) -> ChatMessage:
        """Return a whole choice's message. Calls that are no JSON, and were not cut off, are content as they stand."""
        message = ChatMessage()
        message.extend(self.read(choice))
        is_whole = choice.finish_reason not in ("length", "content_filter")
        if is_whole and not all(is_json_object(call.arguments) for call in message.tool_calls):
            reader = self._readers[choice.choice] = self._reader(reads_tools=False)
            message = ChatMessage(reasoning=message.reasoning)
            message.extend(p for p in reader.push(choice.text, final=True) if not isinstance(p, Reasoning))
        return message

    def finish_reason(self, delta: Delta) -> str | None:
        """Return why the choice ends, in OpenAI's words, once it was read."""
        if delta.finish_reason == "stop" and self._readers[delta.choice].has_tool_calls:
            return "tool_calls"
        return delta.finish_reason

    @property
    def num_reasoning_tokens(self) -> int:
        """The choices' tokens before their answers, so far."""
        return sum(tokens.count for tokens in self._reasoning_tokens)

    def usage(self, generation: Generation) -> Json:
        details = {"reasoning_tokens": self.num_reasoning_tokens}
        return {**usage(generation), "completion_tokens_details": details}

    @property
    def _tools(self) -> ToolUse:
        return self._conversation.tools

    @property
    def _splits_reasoning(self) -> bool:
        return self.server.config.reasoning != "none"

    def _splitter(self) -> ReasoningSplitter:
        return ReasoningSplitter(inside=self._is_inside)

    def _reader(self, *, reads_tools: bool = True) -> ChatReader:
        splitter = self._splitter() if self._splits_reasoning else None
        return ChatReader(splitter, self._tools.parser() if reads_tools else None)

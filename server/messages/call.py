"""One request of the Messages API: its answer in one piece, or as a stream of events."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from server.chat.translated import TranslatedCall
from server.http.error_shapes import anthropic_error
from server.http.errors import error_body
from server.http.streaming import NamedFrames
from server.messages.output import BlockWriter, Json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.errors import DeepseekServeError
    from server.generation import Generation
    from server.messages.protocol import MessagesRequest
    from server.state import ServerState
    from server.text.choice_text import Delta


class MessagesCall(TranslatedCall):
    """Pieces become blocks."""

    request: MessagesRequest

    def __init__(self, server: ServerState, request: MessagesRequest) -> None:
        super().__init__(server, request, request.to_chat())
        self.frames = NamedFrames(_error)
        self._writer = BlockWriter()
        self._id = f"msg_{uuid.uuid4().hex}"
        self._end: Json = {"stop_reason": None, "stop_sequence": None}

    async def answer(self, generation: Generation) -> Json:
        async for _ in self._events(generation):
            pass
        return {**self._message(), **self._end, "content": self._writer.blocks, "usage": self._usage(generation)}

    async def chunks(self, generation: Generation) -> AsyncGenerator[Json, None]:
        yield {"type": "message_start", "message": {**self._message(), "usage": self._usage(generation)}}
        yield {"type": "ping"}
        async with contextlib.aclosing(self._events(generation)) as events:
            async for event in events:
                yield event
        yield {"type": "message_delta", "delta": self._end, "usage": self._usage(generation)}
        yield {"type": "message_stop"}

    async def _events(self, generation: Generation) -> AsyncGenerator[Json, None]:
        """Yield the events of the blocks; then the blocks are whole."""
        async with contextlib.aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                for event in self._writer.write(self.read(delta)):
                    yield event
                if delta.finish_reason is not None:
                    self._end = self._ending(delta, generation.num_output_tokens)
        for event in self._writer.close():
            yield event

    def _ending(self, delta: Delta, num_output_tokens: int) -> Json:
        reason = self.finish_reason(delta)
        if reason == "length":
            is_full = num_output_tokens < self.request.max_tokens
            reason = "model_context_window_exceeded" if is_full else "max_tokens"
        elif reason == "tool_calls":
            reason = "tool_use"
        elif reason == "content_filter":
            reason = "refusal"
        else:
            reason = "end_turn" if delta.stop_string is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": delta.stop_string if reason == "stop_sequence" else None}

    def _message(self) -> Json:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self.model_name}
        return {**head, "content": [], "stop_reason": None, "stop_sequence": None}

    def _usage(self, generation: Generation) -> Json:
        """Return the tokens so far; those of the input that were cached are counted apart."""
        cached = generation.num_cached_tokens
        return {
            "input_tokens": generation.num_prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": generation.num_output_tokens,
            "output_tokens_details": {"thinking_tokens": self.num_reasoning_tokens},
            "service_tier": "standard",
        }


def _error(error: DeepseekServeError) -> dict[str, Any]:
    status, body = error_body(error)
    return anthropic_error(status, body["error"]["message"])

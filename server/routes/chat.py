"""POST /v1/chat/completions: OpenAI's chat completions over the model's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from server.chat.call import ChatCall
from server.chat.pieces import Content, Reasoning, ToolCallArguments, ToolCallStart
from server.chat.reports import token_report
from server.json_body import JsonRoute
from server.pipeline import CompletionsCall, Json, respond, usage, yielding
from server.protocol import ChatCompletionRequest
from server.state import State

if TYPE_CHECKING:
    from server.choice_text import Delta
    from server.generation import Generation

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: ChatCompletionRequest, server: State) -> Response:
    """Answer a conversation."""
    return await respond(ChatCompletionCall(server, body), request)


class ChatCompletionCall(ChatCall, CompletionsCall[ChatCompletionRequest]):
    """A choice is a message, with its reasoning apart from its content."""

    id_prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    _has_sent_prompt = False

    def chunk(self, delta: Delta, generation: Generation) -> Json:
        head = self.head(self.chunk_kind)
        if self.body.return_token_ids and not self._has_sent_prompt:
            head["prompt_token_ids"] = generation.prompts[0]
            self._has_sent_prompt = True
        return {**head, "choices": [self._choice(delta, "delta", self._delta(delta))]}

    async def whole(self, choices: list[Delta], generation: Generation) -> Json:
        written = [self._choice(choice, "message", self._message(choice)) async for choice in yielding(choices)]
        answer = {**self.head(self.kind), "choices": written, "usage": usage(generation)}
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = generation.prompts[0]
        return answer

    def _delta(self, delta: Delta) -> Json:
        content: Json = {"role": "assistant", "content": ""} if delta.is_first else {}
        for piece in self.read(delta):
            match piece:
                case Reasoning(text):
                    content["reasoning_content"] = content.get("reasoning_content", "") + text
                case Content(text):
                    content["content"] = content.get("content", "") + text
                case ToolCallStart(index, call_id, name):
                    function = {"name": name, "arguments": ""}
                    call = {"index": index, "id": call_id, "type": "function", "function": function}
                    content.setdefault("tool_calls", []).append(call)
                case ToolCallArguments(index, text):
                    call = {"index": index, "function": {"arguments": text}}
                    content.setdefault("tool_calls", []).append(call)
        return content

    def _message(self, choice: Delta) -> Json:
        message = self.message(choice)
        written: Json = {"role": "assistant", "content": message.content, "refusal": None}
        if message.reasoning:
            written["reasoning_content"] = message.reasoning
        if message.tool_calls:
            written["content"] = message.content or None
            written["tool_calls"] = [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        return written

    def _choice(self, delta: Delta, name: str, content: Json) -> Json:
        reports = [token_report(self.server.tokenizer, report) for report in delta.reports]
        logprobs = {"content": reports, "refusal": None} if self.body.logprobs else None
        choice = {"index": delta.choice, name: content, "logprobs": logprobs}
        choice["finish_reason"] = self.finish_reason(delta)
        if self.body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

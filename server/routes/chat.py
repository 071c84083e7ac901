"""POST /v1/chat/completions: OpenAI's chat completions over the model's own chat template."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from engine.errors import RequestError
from server.json_body import JsonRoute
from server.pipeline import ApiCall, Json, respond, usage, yielding
from server.protocol import ChatCompletionRequest
from server.reasoning import ReasoningSplitter, starts_inside
from server.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.protocol import SamplingParams
    from server.choice_text import Delta, TokenReport
    from server.generation import Generation

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: ChatCompletionRequest, server: State) -> Response:
    """Answer a conversation."""
    return await respond(ChatCall(server, body), request)


class ChatCall(ApiCall[ChatCompletionRequest]):
    """The prompt is the rendered conversation; a choice is a message, with its reasoning apart from its content."""

    id_prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    add_special_tokens = False  # the template writes BOS itself
    _has_sent_prompt = False

    def validate(self, sampling: SamplingParams) -> None:
        if self.server.tokenizer.chat_template is None:
            message = "This model has no chat template: start the server with --chat-template, or use /v1/completions."
            raise RequestError(message, "messages")
        self.server.check_prompt("", sampling)  # the conversation is rendered later

    def prompts(self) -> Sequence[str | list[int]]:
        return [self._text]

    def chunk(self, delta: Delta, generation: Generation) -> Json:
        content = {"role": "assistant"} if delta.is_first else {}
        reasoning, answer = self._split(delta)
        if reasoning:
            content["reasoning_content"] = reasoning
        if answer or delta.is_first:
            content["content"] = answer
        head = self.head(self.chunk_kind)
        if self.body.return_token_ids and not self._has_sent_prompt:
            head["prompt_token_ids"] = generation.prompts[0]
            self._has_sent_prompt = True
        return {**head, "choices": [self._choice(delta, "delta", content)]}

    async def whole(self, choices: list[Delta], generation: Generation) -> Json:
        written = [self._choice(choice, "message", self._message(choice)) async for choice in yielding(choices)]
        answer = {**self.head(self.kind), "choices": written, "usage": usage(generation)}
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = generation.prompts[0]
        return answer

    @cached_property
    def _text(self) -> str:
        template = self.server.tokenizer.chat_template
        assert template is not None
        messages = [message.for_template() for message in self.body.messages]
        add_generation_prompt = self.body.add_generation_prompt
        return template.render(messages, add_generation_prompt=add_generation_prompt, **self.body.chat_template_kwargs)

    @cached_property
    def _splitters(self) -> list[ReasoningSplitter]:
        inside = starts_inside(self._text)
        return [ReasoningSplitter(inside=inside) for _ in range(self.body.n)]

    def _split(self, delta: Delta) -> tuple[str, str]:
        """Return a delta's text as (reasoning, answer)."""
        if self.server.config.reasoning == "none":
            return "", delta.text
        return self._splitters[delta.choice].push(delta.text, final=delta.finish_reason is not None)

    def _message(self, choice: Delta) -> Json:
        reasoning, answer = self._split(choice)
        message = {"role": "assistant", "content": answer, "refusal": None}
        return {**message, "reasoning_content": reasoning} if reasoning else message

    def _choice(self, delta: Delta, name: str, content: Json) -> Json:
        logprobs = {"content": list(map(self._report, delta.reports)), "refusal": None} if self.body.logprobs else None
        choice = {"index": delta.choice, name: content, "logprobs": logprobs, "finish_reason": delta.finish_reason}
        if self.body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _report(self, report: TokenReport) -> Json:
        logprobs = report.logprobs
        top = [self._token(i, p) for i, p in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)]
        return {**self._token(report.token_id, logprobs.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> Json:
        as_bytes = self.server.tokenizer.token_bytes(token_id)
        return {"token": as_bytes.decode(errors="replace"), "logprob": logprob, "bytes": list(as_bytes)}

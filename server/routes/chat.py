"""POST /v1/chat/completions: OpenAI's chat completions over the model's own chat template, streamed or whole."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Request, Response

from engine.errors import RequestError
from server.generation import Delta, Generation, TokenReport
from server.protocol import ChatCompletionRequest
from server.reasoning import ReasoningSplitter, starts_inside
from server.routes.usage import usage
from server.state import ServerState, State
from server.streaming import EventStream, run_until_disconnect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: ChatCompletionRequest, server: State) -> Response:
    """Answer a conversation."""
    terms = server.terms(request, body)
    server.check_model(body.model)
    info = server.client.require_info()
    template = server.tokenizer.chat_template
    if template is None:
        raise RequestError(
            "This model has no chat template: start the server with --chat-template, or use /v1/completions.",
            "messages",
        )
    try:
        server.check_prompt("", body.sampling(info.max_seq_len - 1))
        with server.admission.admit(1, body.estimate_tokens(), terms.tenant) as ticket:
            text = template.render(
                [message.for_template() for message in body.messages],
                add_generation_prompt=body.add_generation_prompt,
                **body.chat_template_kwargs,
            )
            server.check_prompt(text, body.sampling(info.max_seq_len - 1))
            prompt = await server.encode(text, add_special_tokens=False)  # the template writes BOS itself
            generation = Generation(
                server.client,
                server.tokenizer,
                server.metrics,
                [prompt],
                body.sampling(info.max_seq_len - len(prompt)),
                n=body.n,
                skip_special_tokens=body.skip_special_tokens,
                terms=terms,
                ticket=ticket,
            )
            reply = _Reply(server, body, generation, starts_inside=starts_inside(text))
            if body.stream:
                return EventStream(reply.chunks(), ticket.keep())
            whole = await run_until_disconnect(request.receive, reply.whole())
    except RequestError as error:
        named = {"prompt": "messages", "max_tokens": body.output_limit_name}
        error.param = named.get(error.param or "", error.param)
        raise
    return Response(msgspec.json.encode(whole), media_type="application/json")


class _Reply:
    """The JSON of one request's answer."""

    def __init__(
        self, server: ServerState, body: ChatCompletionRequest, generation: Generation, *, starts_inside: bool
    ) -> None:
        self._tokenizer, self._body, self._generation = server.tokenizer, body, generation
        self._splitters: list[ReasoningSplitter] = []
        if server.config.reasoning == "auto":
            self._splitters = [ReasoningSplitter(inside=starts_inside) for _ in range(generation.num_choices)]
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created, self._model = int(time.time()), server.model_name

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """A stream's chunks: one for each delta, the role in each choice's first; then usage if asked for."""
        generation, started = self._generation, set()
        head = self._head("chat.completion.chunk")
        if self._body.return_token_ids:
            head["prompt_token_ids"] = generation.prompts[0]
        async for delta in generation.deltas():
            content: dict[str, Any] = {} if delta.choice in started else {"role": "assistant"}
            started.add(delta.choice)
            reasoning, answer = self._split(delta)
            if reasoning:
                content["reasoning_content"] = reasoning
            if answer or "role" in content:
                content["content"] = answer
            chunk = {**head, "choices": [self._choice(delta, "delta", content)]}
            head.pop("prompt_token_ids", None)
            if self._body.include_usage:
                chunk["usage"] = usage(generation) if self._body.continuous_usage else None
            yield chunk
        if self._body.include_usage:
            yield {**head, "choices": [], "usage": usage(generation)}

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        joined = [Delta(i) for i in range(self._generation.num_choices)]
        async for delta in self._generation.deltas():
            choice = joined[delta.choice]
            choice.text += delta.text
            choice.token_ids += delta.token_ids
            choice.reports += delta.reports
            choice.finish_reason = delta.finish_reason
        choices = [self._choice(delta, "message", self._message(delta)) for delta in joined]
        answer = {**self._head("chat.completion"), "choices": choices, "usage": usage(self._generation)}
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = self._generation.prompts[0]
        return answer

    def _message(self, delta: Delta) -> dict[str, Any]:
        reasoning, answer = self._split(delta)
        message = {"role": "assistant", "content": answer, "refusal": None}
        return {**message, "reasoning_content": reasoning} if reasoning else message

    def _split(self, delta: Delta) -> tuple[str, str]:
        """A delta's text as (reasoning, answer)."""
        if not self._splitters:
            return "", delta.text
        return self._splitters[delta.choice].push(delta.text, final=delta.finish_reason is not None)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _choice(self, delta: Delta, name: str, content: dict[str, Any]) -> dict[str, Any]:
        logprobs = (
            {"content": [self._report(r) for r in delta.reports], "refusal": None} if self._body.logprobs else None
        )
        choice = {"index": delta.choice, name: content, "logprobs": logprobs, "finish_reason": delta.finish_reason}
        if self._body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _report(self, report: TokenReport) -> dict[str, Any]:
        logprobs = report.logprobs
        top = [self._token(i, p) for i, p in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)]
        return {**self._token(report.token_id, logprobs.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        as_bytes = self._tokenizer.token_bytes(token_id)
        return {"token": as_bytes.decode(errors="replace"), "logprob": logprob, "bytes": list(as_bytes)}

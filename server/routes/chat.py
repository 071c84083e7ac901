"""POST /v1/chat/completions: OpenAI's chat completions over the model's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from server.answers import ChatCompletion
from server.best_of import best_of
from server.chat.call import ChatCall
from server.chat.openai_message import delta_json, message_json
from server.chat.reports import token_report
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.large import run_if
from server.pipeline import MANY_REPORTS, CompletionsCall, Json, respond, yielding
from server.prompt_logprobs import write_prompt_logprobs
from server.protocol import ChatCompletionRequest
from server.state import State

if TYPE_CHECKING:
    from server.generation import Generation
    from server.state import ServerState
    from server.text.choice_text import Delta

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Chat"])


_EXAMPLE = example({"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 50})
_CHUNK = "`data:` lines: chat completions whose choices have a `delta` in place of their message; `[DONE]` is the last"


@router.post(
    "/v1/chat/completions", responses=answer(ChatCompletion, chunk=_CHUNK), openapi_extra=_EXAMPLE, summary="Chat"
)
async def create_chat_completion(request: Request, body: ChatCompletionRequest, server: State) -> Response:
    """Answer a conversation."""
    return await respond(ChatCompletionCall(server, body), request)


class ChatCompletionCall(ChatCall, CompletionsCall[ChatCompletionRequest]):
    """A choice is a message, with its reasoning apart from its content."""

    id_prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    _has_sent_prompt = False

    def __init__(self, server: ServerState, body: ChatCompletionRequest) -> None:
        super().__init__(server, body)
        self._is_older = bool(body.functions)
        self._waiting: dict[int, Delta] = {}  # what no chunk has told of yet, by choice

    def chunk(self, delta: Delta, generation: Generation) -> Json | None:
        pieces = self.read(delta)
        delta = self._unsent(delta)
        if not pieces and delta.finish_reason is None:
            self._waiting[delta.choice] = delta
            return None
        head = self.head(self.chunk_kind)
        if self.body.return_token_ids and not self._has_sent_prompt:
            head["prompt_token_ids"] = generation.prompts[0]
            self._has_sent_prompt = True
        written = delta_json(pieces, is_first=delta.is_first, older=self._is_older)
        return {**head, "choices": [self._choice(delta, "delta", written)]}

    def _unsent(self, delta: Delta) -> Delta:
        """Return a delta with the tokens before it whose text was held back: no chunk told of them."""
        waiting = self._waiting.pop(delta.choice, None)
        if waiting is None:
            return delta
        waiting.extend(delta)
        return waiting

    async def whole(self, choices: list[Delta], generation: Generation) -> Json:
        written = [
            await run_if(choice.num_reports > MANY_REPORTS, self._whole_choice, choice)
            async for choice in yielding(await best_of(choices, generation, self.body.n))
        ]
        answer = {**self.head(self.kind), "choices": written, "usage": self.usage(generation)}
        if self.body.prompt_logprobs is not None:
            prompt, reports = generation.prompts[0], choices[0].prompt_logprobs or []
            write, count = write_prompt_logprobs, self.body.prompt_logprobs
            is_large = len(reports) > MANY_REPORTS
            answer["prompt_logprobs"] = await run_if(is_large, write, self.server.tokenizer, prompt, reports, count)
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = generation.prompts[0]
        return answer

    def _whole_choice(self, choice: Delta) -> Json:
        return self._choice(choice, "message", message_json(self.message(choice), older=self._is_older))

    def _choice(self, delta: Delta, name: str, content: Json) -> Json:
        reports = [token_report(self.server.tokenizer, report) for report in delta.reports]
        logprobs = {"content": reports, "refusal": None} if self.body.logprobs else None
        choice = {"index": delta.choice, name: content, "logprobs": logprobs}
        reason = self.finish_reason(delta)
        choice["finish_reason"] = "function_call" if reason == "tool_calls" and self._is_older else reason
        if self.body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

"""POST /v1/completions: OpenAI's text completions."""

from __future__ import annotations

import functools
import itertools
from functools import cached_property
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from engine.errors import RequestError
from server.answers import Completion
from server.best_of import best_of
from server.http.json_body import JsonRoute
from server.http.openapi import ERRORS, answer, example
from server.inputs import ModelInput
from server.large import run_if
from server.pipeline import MANY_REPORTS, CompletionsCall, Json, respond, usage, yielding
from server.prompt_logprobs import write_prompt_logprobs
from server.protocol import CompletionRequest
from server.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.protocol import SamplingParams, TokenLogprobs
    from server.generation import Generation
    from server.inputs import Prompt
    from server.text.choice_text import Delta

router = APIRouter(route_class=JsonRoute, responses=ERRORS, tags=["Completions"])


_EXAMPLE = example({"prompt": "The longest river of the world is", "max_tokens": 20})
_CHUNK = "`data:` lines: completions whose choices have what is new of their texts; `[DONE]` is the last"


@router.post("/v1/completions", responses=answer(Completion, chunk=_CHUNK), openapi_extra=_EXAMPLE)
async def create_completion(request: Request, body: CompletionRequest, server: State) -> Response:
    """Complete one prompt or several."""
    return await respond(CompletionCall(server, body), request)


class CompletionCall(CompletionsCall[CompletionRequest]):
    """Prompts come as text or token ids; a choice is a text, with the prompt in front if `echo` is set."""

    id_prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    add_special_tokens = True

    def validate(self, sampling: SamplingParams) -> None:
        if self.body.suffix and self.server.tokenizer.fill_in_middle is None:
            message = "This model has no fill-in-the-middle tokens, so that it cannot write in front of a 'suffix'."
            raise RequestError(message, "suffix")
        prompts = self.body.prompt if self.body.truncate_prompt_tokens is None else [""]  # of any length, then
        for prompt in prompts:
            self.server.check_prompt(prompt, sampling)

    async def prompts(self) -> Sequence[Prompt]:
        return self.body.prompt

    async def encode(self, prompt: Prompt) -> ModelInput:
        tokens = self.server.tokenizer.fill_in_middle
        if not self.body.suffix or tokens is None:
            return await super().encode(prompt)
        encode = functools.partial(self.server.encode, modality=self.body.modality)
        begin = await encode("", add_special_tokens=True)
        before = await encode([tokens.prefix], add_special_tokens=False)
        before += await encode(prompt, add_special_tokens=False)
        preceding = prompt if isinstance(prompt, str) else ""
        after = await encode(self.body.suffix, add_special_tokens=False, preceding=preceding)
        modality = before.modalities[-1:]  # what is filled in goes on with what stands before it
        return begin + before + ModelInput([tokens.suffix], modality) + after + ModelInput([tokens.middle], modality)

    def texts(self) -> list[str]:
        decode = self.server.tokenizer.decode
        prompts = [prompt if isinstance(prompt, str) else decode(prompt) for prompt in self.body.prompt]
        return [*prompts, self.body.suffix]

    def chunk(self, delta: Delta, generation: Generation) -> Json:
        return {**self.head(self.chunk_kind), "choices": [self._choice(delta, generation)]}

    async def whole(self, choices: list[Delta], generation: Generation) -> Json:
        best = await best_of(choices, generation, self.body.n)
        written = [
            await run_if(choice.num_reports > MANY_REPORTS, self._choice, choice, generation)
            async for choice in yielding(best)
        ]
        return {**self.head(self.kind), "choices": written, "usage": usage(generation)}

    def _choice(self, delta: Delta, generation: Generation) -> Json:
        number = delta.choice // self.body.n
        prompt_ids = generation.prompts[number]
        prompt_text = self._prompt_texts[number] if self.body.echo else ""
        choice: Json = {
            "index": delta.choice,
            "text": prompt_text + delta.text if delta.is_first else delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        if self.body.logprobs is not None:
            tokens = self._prompt_tokens(prompt_ids, delta) if self.body.echo and delta.is_first else []
            tokens += [(r.token_id, len(prompt_text) + r.text_offset, r.logprobs) for r in delta.reports]
            choice["logprobs"] = self._logprobs(tokens)
        if self.body.prompt_logprobs is not None:
            reports, count = delta.prompt_logprobs or [], self.body.prompt_logprobs
            choice["prompt_logprobs"] = write_prompt_logprobs(self.server.tokenizer, prompt_ids, reports, count)
        if self.body.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if delta.is_first:
                choice["prompt_token_ids"] = prompt_ids
        return choice

    @cached_property
    def _prompt_texts(self) -> list[str]:
        decode, skip = self.server.tokenizer.decode, self.body.skip_special_tokens
        return [
            prompt if isinstance(prompt, str) else decode(prompt, skip_special_tokens=skip)
            for prompt in self.body.prompt
        ]

    def _prompt_tokens(self, token_ids: list[int], delta: Delta) -> list[tuple[int, int, TokenLogprobs | None]]:
        """Return (token id, text offset, logprobs) of an echoed prompt's tokens; the first token has no logprobs."""
        detokenizer = self.server.tokenizer.detokenizer(skip_special_tokens=self.body.skip_special_tokens)
        tokens: list[tuple[int, int, TokenLogprobs | None]] = []
        offset = 0
        for token_id, logprobs in zip(token_ids, [None, *(delta.prompt_logprobs or [])], strict=True):
            tokens.append((token_id, offset, logprobs))
            offset += len(detokenizer.push(token_id))
        return tokens

    def _logprobs(self, tokens: list[tuple[int, int, TokenLogprobs | None]]) -> Json:
        return {
            "tokens": [self._token_text(token_id) for token_id, _, _ in tokens],
            "token_logprobs": [logprobs and logprobs.logprob for _, _, logprobs in tokens],
            "top_logprobs": [logprobs and self._top_logprobs(token_id, logprobs) for token_id, _, logprobs in tokens],
            "text_offset": [offset for _, offset, _ in tokens],
        }

    def _top_logprobs(self, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
        pairs = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
        top = {self._token_text(i): p for i, p in itertools.islice(pairs, self.body.logprobs)}
        top.setdefault(self._token_text(token_id), logprobs.logprob)
        return top

    def _token_text(self, token_id: int) -> str:
        """Return a token as a key of top_logprobs: bytes that are no character are spelled out, to keep keys apart."""
        as_bytes = self.server.tokenizer.token_bytes(token_id)
        try:
            return as_bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in as_bytes)

"""POST /v1/completions: OpenAI's text completions, streamed or whole."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Request, Response

from server.admission import estimate_tokens
from server.generation import Delta, Generation, TokenReport
from server.protocol import CompletionRequest
from server.routes.usage import usage
from server.state import ServerState, State
from server.streaming import EventStream, run_until_disconnect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.protocol import TokenLogprobs

router = APIRouter()


@router.post("/v1/completions")
async def create_completion(request: Request, body: CompletionRequest, server: State) -> Response:
    """Complete one prompt or several."""
    terms = server.terms(request, body)
    server.check_model(body.model)
    sampling = body.sampling()
    for prompt in body.prompts:
        server.check_prompt(prompt, sampling)
    with server.admission.admit(len(body.prompts), sum(map(estimate_tokens, body.prompts)), terms.tenant) as ticket:
        prompts = []
        for prompt in body.prompts:
            prompts.append(prompt if isinstance(prompt, list) else await server.encode(prompt))
            await asyncio.sleep(0)  # a request of many prompts lets others in between
        generation = Generation(
            server.client,
            server.tokenizer,
            server.metrics,
            prompts,
            sampling,
            n=body.n,
            skip_special_tokens=body.skip_special_tokens,
            terms=terms,
            ticket=ticket,
        )
        reply = _Reply(server, body, generation)
        if body.stream:
            return EventStream(reply.chunks(), ticket.keep())
        whole = await run_until_disconnect(request.receive, reply.whole())
    return Response(msgspec.json.encode(whole), media_type="application/json")


class _Reply:
    """The JSON of one request's answer."""

    def __init__(self, server: ServerState, body: CompletionRequest, generation: Generation) -> None:
        self._tokenizer, self._body, self._generation = server.tokenizer, body, generation
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": server.model_name,
        }
        self._started: set[int] = set()

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """A stream's chunks: one for each delta, then usage if asked for."""
        generation = self._generation
        async for delta in generation.deltas():
            chunk = {**self._head, "choices": [self._choice(delta)]}
            if self._body.include_usage:
                chunk["usage"] = usage(generation) if self._body.continuous_usage else None
            yield chunk
        if self._body.include_usage:
            yield {**self._head, "choices": [], "usage": usage(generation)}

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece: the stream's chunks, joined."""
        choices: dict[int, dict[str, Any]] = {}
        async for delta in self._generation.deltas():
            piece = self._choice(delta)
            choice = choices.setdefault(delta.choice, piece)
            if choice is not piece:
                _join(choice, piece)
        ordered = [choices[i] for i in sorted(choices)]
        return {**self._head, "choices": ordered, "usage": usage(self._generation)}

    def _choice(self, delta: Delta) -> dict[str, Any]:
        is_first = delta.choice not in self._started
        self._started.add(delta.choice)
        echo = self._prompt_text(delta.choice) if self._body.echo and is_first else ""
        choice: dict[str, Any] = {
            "index": delta.choice,
            "text": echo + delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        if self._body.logprobs is not None:
            offset = len(self._prompt_text(delta.choice)) if self._body.echo else 0
            reports = self._prompt_reports(delta) if echo or delta.prompt_logprobs is not None else _empty_logprobs()
            for report in delta.reports:
                self._add(reports, report, offset)
            choice["logprobs"] = reports
        if self._body.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if is_first:
                choice["prompt_token_ids"] = self._prompt(delta.choice)
        return choice

    def _prompt(self, choice: int) -> list[int]:
        return self._generation.prompts[choice // self._generation.n]

    def _prompt_text(self, choice: int) -> str:
        prompt = self._body.prompts[choice // self._generation.n]
        if isinstance(prompt, str):
            return prompt
        return self._tokenizer.decode(prompt, skip_special_tokens=self._body.skip_special_tokens)

    def _prompt_reports(self, delta: Delta) -> dict[str, Any]:
        """Logprobs of the echoed prompt; its first token has none."""
        token_ids = self._prompt(delta.choice)
        detokenizer = self._tokenizer.detokenizer(skip_special_tokens=self._body.skip_special_tokens)
        reports = _empty_logprobs()
        offset = 0
        for token_id, logprobs in zip(token_ids, [None, *(delta.prompt_logprobs or [])], strict=True):
            if logprobs is None:
                reports["tokens"].append(self._token_text(token_id))
                reports["token_logprobs"].append(None)
                reports["top_logprobs"].append(None)
                reports["text_offset"].append(offset)
            else:
                self._add(reports, TokenReport(token_id, offset, logprobs), 0)
            offset += len(detokenizer.push(token_id))
        return reports

    def _add(self, lists: dict[str, Any], report: TokenReport, offset: int) -> None:
        logprobs: TokenLogprobs = report.logprobs
        top = {self._token_text(i): p for i, p in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)}
        top.setdefault(self._token_text(report.token_id), logprobs.logprob)
        lists["tokens"].append(self._token_text(report.token_id))
        lists["token_logprobs"].append(logprobs.logprob)
        lists["top_logprobs"].append(top)
        lists["text_offset"].append(offset + report.text_offset)

    def _token_text(self, token_id: int) -> str:
        """A token as a key of top_logprobs: broken characters are spelled out, so that none hides another."""
        as_bytes = self._tokenizer.token_bytes(token_id)
        try:
            return as_bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in as_bytes)


def _empty_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _join(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    choice["text"] += piece["text"]
    choice["finish_reason"] = piece["finish_reason"]
    if piece["logprobs"] is not None:
        for name, values in piece["logprobs"].items():
            choice["logprobs"][name] += values
    if "token_ids" in piece:
        choice["token_ids"] += piece["token_ids"]

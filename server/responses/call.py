"""One request of the Responses API: its answer in one piece, or as a stream of events."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Any

from engine.errors import DeepseekServeError, RequestError
from server.chat.reports import AnswerReports
from server.chat.translated import TranslatedCall
from server.http.errors import error_body
from server.http.streaming import NamedFrames
from server.large import apart
from server.pipeline import usage
from server.responses.history import History, StoredResponse
from server.responses.items import InputItem, Json
from server.responses.output import OutputWriter
from server.responses.truncation import newest_turns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from engine.protocol import SamplingParams
    from server.generation import Generation
    from server.inputs import Prompt
    from server.protocol import Message
    from server.responses.protocol import ResponseRequest
    from server.state import ServerState

_ECHOED = (  # fields of the request that its response has too
    *("instructions", "previous_response_id", "max_output_tokens", "max_tool_calls", "parallel_tool_calls"),
    *("metadata", "prompt_cache_key", "safety_identifier", "truncation", "user"),
)


class ResponsesCall(TranslatedCall):
    """Pieces become items; the items' events are numbered, between those of the response itself."""

    request: ResponseRequest

    def __init__(self, server: ServerState, request: ResponseRequest, items: list[InputItem], history: History) -> None:
        """`items` is the whole conversation, without references."""
        super().__init__(server, request, request.to_chat(items))
        self.frames = NamedFrames(self._error)
        self._items, self._history = items, history
        self._key, self._created = uuid.uuid4().hex, time.time()
        seals = "reasoning.encrypted_content" in request.include
        self._writer = OutputWriter(self._key, summarises=request.summarises, seals=seals)
        self._logprobs = AnswerReports(server.tokenizer) if request.reports_logprobs else None
        self._num_events = 0
        self._response = self._head()

    def validate(self, sampling: SamplingParams) -> None:
        super().validate(sampling)
        self._response |= {"temperature": sampling.temperature, "top_p": sampling.top_p}  # the model's own, if unasked

    async def prompts(self) -> Sequence[Prompt]:
        if self.request.truncation == "auto":
            self.body.messages = await newest_turns(self.body.messages, self._fits)
        return await super().prompts()

    async def _fits(self, messages: list[Message]) -> bool:
        self.body.messages = messages
        rendered = await self._conversation.render()
        try:
            prompt = await self.server.encode(rendered, add_special_tokens=False)
        except RequestError:  # too long, however it is tokenised
            return False
        room = self.server.client.require_info().max_seq_len - len(prompt)
        return room >= (self.request.max_output_tokens or 1)

    async def answer(self, generation: Generation) -> Json:
        async for _ in self._events(generation):
            pass
        return self._response

    async def chunks(self, generation: Generation) -> AsyncGenerator[Json, None]:
        for kind in ("created", "in_progress"):
            yield self._numbered({"type": f"response.{kind}", "response": self._response})
        try:
            async with contextlib.aclosing(self._events(generation)) as events:
                async for event in events:
                    yield self._numbered(event)
        except DeepseekServeError as error:
            yield self._error(error)
            body = error_body(error)[1]["error"]
            failure = {"code": body["code"] or "server_error", "message": body["message"]}
            failed = {**self._response, "status": "failed", "error": failure, "output": self._writer.items}
            yield self._numbered({"type": "response.failed", "response": failed})
            return
        yield self._numbered({"type": f"response.{self._response['status']}", "response": self._response})

    async def _events(self, generation: Generation) -> AsyncGenerator[Json, None]:
        """Yield the events of the output; then the response is whole, and stored."""
        reason = None
        async with contextlib.aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                pieces = self.read(delta)
                reports = self._logprobs.of(delta, pieces) if self._logprobs is not None else []
                for event in self._writer.write(pieces, reports):
                    yield event
                reason = self.finish_reason(delta)
        causes = {"length": "max_output_tokens", "content_filter": "content_filter"}
        cause = causes.get(reason or "")
        is_whole = cause is None
        for event in self._writer.close("completed" if is_whole else "incomplete"):
            yield event
        self._response |= {
            "status": "completed" if is_whole else "incomplete",
            "completed_at": int(time.time()) if is_whole else None,
            "incomplete_details": None if is_whole else {"reason": cause},
            "output": self._writer.items,
            "usage": self._usage(generation),
        }
        if self.request.store:
            stored = StoredResponse(self._response, await apart(self._numbered_input))
            self._response["store"] = await self._history.keep(stored)

    def _head(self) -> Json:
        request, choice = self.request, self.request.tool_choice
        return {
            "id": f"resp_{self._key}",
            "object": "response",
            "created_at": int(self._created),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.model_name,
            "output": [],
            "usage": None,
            "top_logprobs": request.top_logprobs or 0,
            "reasoning": {
                "effort": request.reasoning.effort,
                "summary": request.reasoning.summary or request.reasoning.generate_summary,
            },
            "text": _dumped(request.text, by_alias=True) | {"verbosity": request.text.verbosity or "medium"},
            "tools": [_tool(tool) for tool in request.tools],
            "tool_choice": choice if isinstance(choice, str) else _dumped(choice),
            "service_tier": "default",
            "store": request.store,
            **{name: getattr(request, name) for name in _ECHOED},
        }

    def _usage(self, generation: Generation) -> Json:
        counts = usage(generation)
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": generation.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self.num_reasoning_tokens},
            "total_tokens": counts["total_tokens"],
        }

    def _numbered_input(self) -> list[Json]:
        """Return the conversation's items, each with an id and a status, as they are listed later."""
        prefixes = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
        listed = []
        for number, item in enumerate(self._items):
            fields = item.model_dump(exclude_none=True)
            own_id = f"{prefixes[item.type]}_{self._key}_in{number}"
            if isinstance(fields.get("content"), str):
                kind = "output_text" if fields["role"] == "assistant" else "input_text"
                fields["content"] = [{"type": kind, "text": fields["content"]}]
            listed.append({"id": own_id, "status": "completed", **fields})
        return listed

    def _numbered(self, event: Json) -> Json:
        self._num_events += 1
        return {**event, "sequence_number": self._num_events - 1}

    def _error(self, error: DeepseekServeError) -> Json:
        body = error_body(error)[1]["error"]
        return self._numbered({"type": "error", **{name: body[name] for name in ("code", "message", "param")}})


def _tool(tool: Any) -> Json:
    return {"description": None, "parameters": None, "strict": None, **_dumped(tool)}


def _dumped(model: Any, *, by_alias: bool = False) -> Json:
    fields: Json = model.model_dump(exclude_none=True, by_alias=by_alias)
    return fields

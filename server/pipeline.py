"""The way of every request that generates text: `respond` validates, admits, encodes, submits, streams or joins.

Each API is an `ApiCall` in `server.routes`, which says what its prompts are and what its JSON looks like.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import msgspec
from fastapi import Request, Response

from engine.errors import RequestError
from engine.protocol import SamplingParams
from server.generation import Generation
from server.http.access import LEFT
from server.http.client_limits import reserve_tokens
from server.http.streaming import DataFrames, EventStream, Frames, run_until_disconnect
from server.inputs import check_modality
from server.large import apart, in_thread, run_if
from server.protocol import GenerationRequest
from server.submission import scheduling_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from engine.protocol import SchedulingParams
    from server.admission import Ticket
    from server.inputs import ModelInput, Prompt
    from server.state import ServerState
    from server.text.choice_text import Delta

MANY_REPORTS = 64  # of tokens with their likeliest alternatives, which take a millisecond to write
_MAX_GRAMMARS = 16 << 20  # characters: each prompt takes the grammar to the engine

Json = dict[str, Any]
T = TypeVar("T")
Body = TypeVar("Body", bound=GenerationRequest)


class ApiCall(ABC, Generic[Body]):
    """One request in the words of one API: its prompts, and its answer.

    Attributes:
        add_special_tokens: whether the tokenizer puts BOS in front of a prompt.
        frames: how the stream's chunks are written.
    """

    add_special_tokens: ClassVar[bool]
    frames: Frames = DataFrames()

    def __init__(self, server: ServerState, body: Body) -> None:
        self.server, self.body = server, body

    @abstractmethod
    def validate(self, sampling: SamplingParams) -> None:
        """Refuse what can be refused before any work is done.

        Raises:
            RequestError: naming the field at fault and what is valid.
        """

    @abstractmethod
    async def prompts(self) -> Sequence[Prompt]:
        """Return the prompts, as text or token ids; called once the request is admitted."""

    async def encode(self, prompt: Prompt) -> ModelInput:
        """Return what the model reads of a prompt, cut as truncate_prompt_tokens asks.

        Raises:
            RequestError: the text is too long, or not valid Unicode.
        """
        server, special, context = self.server, self.add_special_tokens, self.server.client.require_info().max_seq_len
        keep = self.body.num_kept(context)
        read = await server.encode(prompt, add_special_tokens=special, modality=self.body.modality, keep=keep)
        bos_id = server.tokenizer.bos_id if special and isinstance(prompt, str) else None
        return self.body.truncate(read, context, bos_id)

    @abstractmethod
    def chunks(self, generation: Generation) -> AsyncGenerator[Json, None]:
        """Yield a stream's chunks."""

    @abstractmethod
    async def answer(self, generation: Generation) -> Json:
        """Run to the end and return the answer in one piece."""

    @abstractmethod
    def texts(self) -> list[str]:
        """Return what the guard reads of the request, each text by itself; called after `prompts`."""

    @property
    def kept_special_tokens(self) -> frozenset[int]:
        """Special tokens that stay in the text, since the answer is read by them."""
        return frozenset()

    def is_enough(self, delta: Delta) -> bool:  # noqa: ARG002
        """Whether a choice ends with this delta, whatever the model would say next. Each delta is given once."""
        return False

    @property
    def grammar_field(self) -> str | None:
        """The field that says what the output must match; None if it may be any text."""
        return self.body.form_field

    def grammar(self) -> str | None:
        """Return what the output must match, as llguidance's Lark text (server.grammar.lark).

        Called in a thread, after `prompts`, and only if there is a `grammar_field`.

        Raises:
            RequestError: with the reason against what the field says.
        """
        return self.body.form()

    def usage(self, generation: Generation) -> Json:
        """Return OpenAI's `usage` object: the tokens so far."""
        return usage(generation)

    def in_its_words(self, error: RequestError) -> RequestError:
        """Return an error with the API's own name of the field at fault."""
        error.param = self.body.param_names.get(error.param, error.param)
        return error


class CompletionsCall(ApiCall[Body]):
    """A call of OpenAI's completions, of text or chat: a chunk for each delta, choices in one piece, then usage.

    Attributes:
        id_prefix: how the answer's id begins.
        kind: the `object` of an answer in one piece; chunk_kind is the `object` of a stream's chunks.
    """

    id_prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, server: ServerState, body: Body) -> None:
        super().__init__(server, body)
        self._id, self._created = f"{self.id_prefix}-{uuid.uuid4().hex}", int(time.time())

    @abstractmethod
    def chunk(self, delta: Delta, generation: Generation) -> Json | None:
        """Return a stream's chunk for one delta, without usage; None to wait for the next delta of this choice."""

    @abstractmethod
    async def whole(self, choices: list[Delta], generation: Generation) -> Json:
        """Return the answer in one piece."""

    async def answer(self, generation: Generation) -> Json:
        return await self.whole(await generation.join(), generation)

    async def chunks(self, generation: Generation) -> AsyncGenerator[Json, None]:
        options = self.body.usage_options
        async with contextlib.aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                chunk = await run_if(delta.num_reports > MANY_REPORTS, self.chunk, delta, generation)
                if chunk is None:
                    continue
                if options.include_usage:
                    chunk["usage"] = self.usage(generation) if options.continuous_usage_stats else None
                yield chunk
        if options.include_usage:
            yield {**self.head(self.chunk_kind), "choices": [], "usage": self.usage(generation)}

    def head(self, kind: str) -> Json:
        """Return the fields that every answer and every chunk begins with."""
        name = self.body.model or self.server.model_name
        return {"id": self._id, "object": kind, "created": self._created, "model": name}


async def respond(call: ApiCall[Any], request: Request) -> Response:
    """Answer a call: validate, admit, encode, compile the grammar, ask the guard, submit, then stream or join.

    Raises:
        DeepseekServeError: the request is refused, or its generation fails before an answer has begun.
    """
    server, scheduling = call.server, scheduling_of(request, call.server, call.body)
    try:
        await _validate(call)
        with contextlib.ExitStack() as stack:
            ticket = stack.enter_context(await _admit(call, request, scheduling))
            prompts = [await call.encode(prompt) async for prompt in yielding(await call.prompts())]
            grammar, key_name = await _grammar(call, len(prompts)), request.scope["caller"].key_name
            kept = call.kept_special_tokens
            if server.guard is not None:
                texts = await asyncio.to_thread(call.texts)  # of token ids, too
                check = server.guard.check_prompt(texts, scheduling)
                if await run_until_disconnect(request.receive, check) is None:
                    return Response(status_code=LEFT)
            generation = Generation(
                server, call.body, prompts, scheduling, ticket, key_name, grammar, kept, call.is_enough
            )
            if call.body.stream:
                return EventStream(call.chunks(generation), stack.pop_all(), call.frames)
            answer = await run_until_disconnect(request.receive, call.answer(generation))
    except RequestError as error:
        raise call.in_its_words(error) from None
    if answer is None:  # the client is gone
        return Response(status_code=LEFT)
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _validate(call: ApiCall[Any]) -> None:
    """Refuse what can be refused before any work is done."""
    server, body = call.server, call.body
    server.check_model(body.model)
    info = server.client.require_info()
    info.check_task("generate")
    check_modality(body.modality, info.modalities)
    run = in_thread if body.bad_words else apart  # to spell bad words takes long, however small the request is
    sampling = await run(server.sampling, body, info.max_seq_len - 1)
    await apart(call.validate, sampling)


async def _admit(call: ApiCall[Any], request: Request, scheduling: SchedulingParams) -> Ticket:
    """Let the call wait among others, if the queue and the client's limits have room; sizes are estimates."""
    server, body = call.server, call.body
    sizes = await apart(body.estimate_tokens)
    num_sequences = len(sizes) * body.num_sequences
    num_tokens = sum(sizes) * server.client.require_info().num_computed(body.num_sequences)
    reserve_tokens(request.scope, sum(sizes) + num_sequences * body.num_asked)
    admission = server.background if scheduling.background else server.admission
    return admission.admit(num_sequences, num_tokens, scheduling.tenant)


async def _grammar(call: ApiCall[Any], num_prompts: int) -> str | None:
    """Return what the output must match, once it is known to be possible."""
    if (field := call.grammar_field) is None:
        return None
    if call.body.allowed_token_ids:
        raise RequestError(f"'allowed_token_ids' does not go with '{field}'", "allowed_token_ids")
    try:
        grammar = await call.server.grammars.grammar(call.grammar)
    except RequestError as error:
        raise RequestError(f"Invalid '{field}': {error}", field) from None
    if grammar is not None and len(grammar) * num_prompts > _MAX_GRAMMARS:
        message = f"The grammar of '{field}' has {len(grammar)} characters, too many for {num_prompts} prompts at once"
        raise RequestError(message, field)
    return grammar


async def yielding(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """Yield items; between two of them other requests run, so that a request of many prompts does not delay them."""
    for item in items:
        yield item
        await asyncio.sleep(0)


def usage(generation: Generation) -> Json:
    """Return OpenAI's `usage` object: the tokens so far."""
    return {
        "prompt_tokens": generation.num_prompt_tokens,
        "completion_tokens": generation.num_output_tokens,
        "total_tokens": generation.num_prompt_tokens + generation.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }

"""What the routes share: one served model with its tokenizer, engine and metrics. `server.app` makes it once."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request

from engine.errors import RequestError, UnknownModelError
from engine.protocol import SamplingParams
from server.admission import Admission
from server.config import ServerConfig
from server.engine_client import EngineClient
from server.grammar.checker import GrammarChecker
from server.guard.guard import Guard
from server.heads.defaults import EmbeddingDefaults
from server.health import Health
from server.inputs import MarkedText, ModelInput, Prompt, preprocess
from server.memory import Trimming
from server.observe.load import Load
from server.observe.metrics import Metrics
from server.protocol import GenerationRequest
from server.storage import Storage
from server.text.long_texts import LongTexts, num_bytes
from server.text.tokenizer import Tokenizer

_MAX_BAD_TOKENS = 8192  # each step looks for their words in the output
_LONG_TEXT = 4096  # characters; a longer text is tokenised in a thread, so that it does not delay streams
_MOST_TOKENS = 1 << 18  # of a text of any length; more of a model whose context is longer


@dataclass(frozen=True)
class ServerState:
    """One served model.

    Attributes:
        model_name: the model's name in the API.
        aliases: further names that requests may call it.
        model_root: the model's folder or file.
        background: lets every line of a batch in: server.batches bounds how many there are.
        sampling_defaults: values of SamplingParams for what requests leave out (server.generation_config).
        embedding_defaults: the same for how embeddings are pooled.
        guard: reads prompts and answers; None without --guard.
        guard_texts: the guard's long texts, where the guard is the model.
    """

    client: EngineClient
    health: Health
    tokenizer: Tokenizer
    metrics: Metrics
    model_name: str
    model_root: Path
    config: ServerConfig
    admission: Admission
    storage: Storage
    grammars: GrammarChecker
    load: Load
    aliases: tuple[str, ...] = ()
    background: Admission = field(default_factory=lambda: Admission(sys.maxsize, sys.maxsize))
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    embedding_defaults: EmbeddingDefaults = field(default_factory=EmbeddingDefaults)
    trimming: Trimming = field(default_factory=Trimming)
    created: int = field(default_factory=lambda: int(time.time()))
    guard: Guard | None = None
    guard_texts: LongTexts | None = None

    @functools.cached_property
    def texts(self) -> LongTexts:
        """The long texts of all requests."""
        return self.guard_texts or LongTexts(self.tokenizer, self.trimming)

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names of the model in the API."""
        return (self.model_name, *self.aliases)

    @property
    def takes_requests(self) -> bool:
        """Whether the engine is there, and the guard's, if there is a guard."""
        return self.client.info is not None and (self.guard is None or self.guard.client.info is not None)

    @functools.cached_property
    def moderator(self) -> ServerState:
        """Who answers /v1/moderations: the guard, by each of the served model's names too, else the served model."""
        if (guard := self.guard) is None:
            return self
        model = guard.model
        return dataclasses.replace(
            self,
            client=model.client,
            tokenizer=model.tokenizer,
            model_name=model.name,
            aliases=self.model_names,
            admission=guard.admission,
            guard=None,
            guard_texts=guard.texts,
        )

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served; None stands for the served one."""
        if name is not None and name not in self.model_names:
            names = ", ".join(f"'{name}'" for name in self.model_names)
            raise UnknownModelError(
                f"The model '{name}' does not exist here; this server has {names}.",
                "model",
                "model_not_found",
            )

    def sampling(self, body: GenerationRequest, room: int) -> SamplingParams:
        """Return a request's parameters, with the model's own defaults; `room` is what the context leaves for output.

        Raises:
            RequestError: a parameter asks for what cannot be.
        """
        params = body.sampling(room, self.sampling_defaults)
        if not body.bad_words:
            return params
        spellings = sorted(set().union(*map(self.tokenizer.spellings, body.bad_words)))
        if (num_tokens := sum(map(len, spellings))) > _MAX_BAD_TOKENS:
            message = f"'bad_words' has {num_tokens} tokens, alone and behind a space"
            raise RequestError(f"{message}; at most {_MAX_BAD_TOKENS} are taken", "bad_words")
        return msgspec.structs.replace(params, bad_words=tuple(spellings))

    def check_prompt(self, prompt: str | list[int], sampling: SamplingParams) -> None:
        """Refuse what the engine can never compute, as far as that shows before a text is tokenised.

        Raises:
            RequestError: naming the field and the limit.
        """
        info = self.client.require_info()
        if isinstance(prompt, list):
            info.check(prompt, sampling)
        else:
            info.check([0], sampling)  # a text has at least one token
            self.check_length(prompt)

    async def encode(
        self, prompt: Prompt, *, any_length: bool = False, keep: int | None = None, **options: Any
    ) -> ModelInput:
        """Return what the model reads of a prompt; the event loop is never blocked for long.

        Args:
            prompt: as server.inputs.preprocess takes it.
            any_length: whether a text may be too long for the context.
            keep: how many tokens of a text's end are wanted, so that what stands far before them need not be read.
            **options: further arguments of server.inputs.preprocess.

        Raises:
            RequestError: the text is too long (unless `any_length`), or not valid Unicode.
        """
        if isinstance(prompt, str) and keep is not None and len(prompt) > _LONG_TEXT:
            end = await self.texts.end_of(prompt, keep)
            prompt, options["preceding"] = end, prompt[: len(prompt) - len(end)]
        elif not isinstance(prompt, list):
            await self.check_text(prompt, any_length=any_length or keep is not None)
        known = self.client.require_info().modalities
        read = functools.partial(preprocess, self.tokenizer, prompt, known, **options)
        if isinstance(prompt, list) or len(prompt) <= _LONG_TEXT:
            return read()
        return await self.texts.run(num_bytes(prompt if isinstance(prompt, str) else prompt.text), read)

    async def check_text(self, prompt: str | MarkedText, *, any_length: bool = False) -> None:
        """Refuse a text that is surely too long, before all of it is tokenised.

        Raises:
            RequestError: naming the limit.
        """
        if not any_length:
            self.check_length(prompt)
        if len(prompt) <= _LONG_TEXT:
            return
        text, context = prompt if isinstance(prompt, str) else prompt.text, self.client.require_info().max_seq_len
        if not any_length and await self.texts.exceeds(text, context):
            raise _too_long(context, text)
        if any_length and await self.texts.exceeds(text, most := max(_MOST_TOKENS, 4 * context), usual=1):
            message = (
                f"The text has more than {most} tokens, the most that are looked at; it has {len(text)} characters."
            )
            raise RequestError(message, "prompt")

    def check_length(self, text: str | MarkedText) -> None:
        """Refuse a text that is too long however it is tokenised.

        Raises:
            RequestError: naming the limit.
        """
        context = self.client.require_info().max_seq_len
        if len(text) > context * self.tokenizer.max_token_bytes:  # too many tokens, however the text is split
            raise _too_long(context, text)


def _too_long(context: int, text: str | MarkedText) -> RequestError:
    message = f"This server's maximum context length is {context} tokens; {len(text)} characters have more."
    return RequestError(message, "prompt", "context_length_exceeded")


async def _from_request(request: Request) -> ServerState:  # async: FastAPI runs plain functions in threads
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(_from_request)]

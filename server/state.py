"""What the routes share: one served model with its tokenizer, engine and metrics. `server.app` makes it once."""

from __future__ import annotations

import asyncio
import dataclasses
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
from server.observe.load import Load
from server.observe.metrics import Metrics
from server.protocol import GenerationRequest
from server.storage import Storage
from server.text.tokenizer import Tokenizer

_MAX_BAD_TOKENS = 8192  # each step looks for their words in the output
_LONG_TEXT = 4096  # characters; a longer text is tokenised in a thread, so that it does not delay streams


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
    created: int = field(default_factory=lambda: int(time.time()))
    guard: Guard | None = None

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names of the model in the API."""
        return (self.model_name, *self.aliases)

    @property
    def takes_requests(self) -> bool:
        """Whether the engine is there, and the guard's, if there is a guard."""
        return self.client.info is not None and (self.guard is None or self.guard.client.info is not None)

    @property
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

    async def encode(self, prompt: Prompt, *, any_length: bool = False, **options: Any) -> ModelInput:
        """Return what the model reads of a prompt; the event loop is never blocked for long.

        Args:
            prompt: as server.inputs.preprocess takes it.
            any_length: whether a text may be too long for the context.
            **options: further arguments of server.inputs.preprocess.

        Raises:
            RequestError: the text is too long (unless `any_length`), or not valid Unicode.
        """
        if not isinstance(prompt, list) and not any_length:
            self.check_length(prompt)
        known = self.client.require_info().modalities
        arguments = self.tokenizer, prompt, known
        if isinstance(prompt, list) or len(prompt) <= _LONG_TEXT:
            return preprocess(*arguments, **options)
        return await asyncio.to_thread(preprocess, *arguments, **options)

    def check_length(self, text: str | MarkedText) -> None:
        """Refuse a text that is too long however it is tokenised.

        Raises:
            RequestError: naming the limit.
        """
        context = self.client.require_info().max_seq_len
        if len(text) > context * self.tokenizer.max_token_bytes:  # too many tokens, however the text is split
            message = f"This server's maximum context length is {context} tokens; {len(text)} characters have more."
            raise RequestError(message, "prompt", "context_length_exceeded")


async def _from_request(request: Request) -> ServerState:  # async: FastAPI runs plain functions in threads
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(_from_request)]

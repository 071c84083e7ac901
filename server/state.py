"""What the routes share: one served model with its tokenizer, engine and metrics. Made once, by server.app."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from engine.errors import RequestError, UnknownModelError
from engine.protocol import SamplingParams, Terms
from server.admission import Admission
from server.config import ServerConfig
from server.engine_client import EngineClient
from server.metrics import Metrics
from server.protocol import GenerationRequest
from server.tokenizer import Tokenizer

_LONG_TEXT = 4096  # characters; a longer text is tokenised in a thread, so that streams are not held up


@dataclass(frozen=True)
class ServerState:
    """One served model.

    Attributes:
        model_name: what the API calls it.
        model_root: where it lies.
        admission: how much waits.
    """

    client: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics
    model_name: str
    model_root: Path
    config: ServerConfig
    admission: Admission
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, name: str | None) -> None:
        """Refuse a request for a model that is not served; a request that names none gets the one that is."""
        if name is not None and name != self.model_name:
            raise UnknownModelError(
                f"The model '{name}' does not exist here; this server has '{self.model_name}'.",
                "model",
                "model_not_found",
            )

    def terms(self, request: Request, body: GenerationRequest) -> Terms:
        """What a request that arrives now is scheduled by."""
        arrival_time, caller = time.monotonic(), request.scope["caller"]
        limits = [seconds for seconds in (body.timeout, self.config.request_timeout) if seconds is not None]
        patience = self.config.queue_timeout
        return Terms(
            arrival_time,
            body.priority,
            caller.tenant,
            caller.weight,
            deadline=arrival_time + min(limits) if limits else None,
            start_deadline=None if patience is None else arrival_time + patience,
        )

    def check_prompt(self, prompt: str | list[int], sampling: SamplingParams) -> None:
        """Refuse what can never be computed here, as far as that shows before a text is tokenised.

        Raises:
            RequestError: naming the field and the limit.
        """
        info = self.client.require_info()
        if isinstance(prompt, list):
            info.check(prompt, sampling)
            return
        info.check([0], sampling)  # a text has a token at least, once tokenised
        if len(prompt) > info.max_seq_len * self.tokenizer.max_token_bytes:  # more than fit, however it is split
            raise RequestError(
                f"This server's maximum context length is {info.max_seq_len} tokens; {len(prompt)} characters have "
                "more.",
                "prompt",
                "context_length_exceeded",
            )

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, without stalling the event loop."""
        if len(text) <= _LONG_TEXT:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)


async def _from_request(request: Request) -> ServerState:  # async: FastAPI runs plain functions in threads
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(_from_request)]

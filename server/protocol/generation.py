"""What every request that generates text can say, and its translation to SamplingParams.

A field that is not listed here is refused by name, never ignored. Null and the values in `_NEUTRAL` are taken: clients
send them unasked, and they ask for nothing. Ranges are OpenAI's where OpenAI has them, else vLLM's.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from engine.errors import RequestError
from engine.protocol import SamplingParams
from server.protocol.fields import StopString, Strict, TokenId, fault
from server.protocol.structured_outputs import StructuredOutputFields

MAX_LOGPROBS = 20
_MAX_BIASES = 1024
MAX_SEQUENCES = 2048  # of one request, over all its prompts and n

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
}

_TAKEN_AS_THEY_ARE = (  # fields of SamplingParams
    *("min_tokens", "temperature", "top_p", "min_p", "seed", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)


class StreamOptions(Strict):
    """stream_options: whether to report usage in a last chunk, or (vLLM's extension) in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Limits(NamedTuple):
    """Fields of SamplingParams; a max_tokens of None is what the context leaves."""

    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None = None


def _is_neutral(name: str, value: Any) -> bool:
    return any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL.get(name, ()))


class GenerationRequest(StructuredOutputFields):
    """What both completion routes take."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, lt=1 << 31, description="0 and -1 mean all")
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field({}, max_length=_MAX_BIASES)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] = Field([])
    stop_token_ids: list[TokenId] = Field([], max_length=128, fail_fast=True)
    min_tokens: int = Field(0, ge=0, lt=1 << 31)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = Field(False, description="report token ids beside texts (vLLM's extension)")
    priority: int = Field(0, ge=-(1 << 31), lt=1 << 31, description="for --policy priority: smaller is sooner")
    timeout: float | None = Field(None, gt=0, le=86400, description="seconds after which the request is ended")
    user: str | None = Field(None, max_length=1024, description="accepted for compatibility; nothing depends on it")

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        """Drop fields that ask for nothing (null stands for the default), and unknown ones behind the first."""
        if not isinstance(data, dict):
            return data
        asked = {
            name: value
            for name, value in data.items()
            if value is not None and (name in cls.model_fields or not _is_neutral(name, value))
        }
        unknown = (name for name in asked if name not in cls.model_fields)
        next(unknown, None)  # pydantic would report each, and only the first is answered with
        for name in list(unknown):
            del asked[name]
        return asked

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_biases(cls, bias: Any) -> Any:
        """Refuse very many before each is looked at."""
        if isinstance(bias, dict) and len(bias) > _MAX_BIASES:
            raise ValueError(f"it must not have more than {_MAX_BIASES} tokens")
        return bias

    @field_validator("logit_bias")
    @classmethod
    def _token_id_keys(cls, bias: dict[str, float]) -> dict[str, float]:
        if any(not key.isascii() or not key.isdigit() or len(key) > 9 for key in bias):
            raise ValueError("keys must be token ids, written as decimal numbers")
        return bias

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "'stream_options' goes with 'stream': true only")
        return self

    @property
    def usage_options(self) -> StreamOptions:
        """When a stream reports usage."""
        return self.stream_options or StreamOptions()

    @property
    def param_names(self) -> dict[str | None, str]:
        """The API's names of fields that have other names in the engine's errors."""
        return {}

    @abstractmethod
    def estimate_tokens(self) -> list[int]:
        """Return roughly how many tokens each prompt has, before any work on the prompts."""

    @abstractmethod
    def _limits(self) -> Limits:
        """Return what each API says in fields of its own."""

    def sampling(self, room: int) -> SamplingParams:
        """Return the engine's parameters; `room` is how many tokens the context leaves after the longest prompt.

        Raises:
            RequestError: min_tokens is more than what can follow.
        """
        limits = self._limits()
        max_tokens = max(1, room) if limits.max_tokens is None else limits.max_tokens
        if self.min_tokens > max_tokens:
            raise RequestError(f"'min_tokens' must not exceed the {max_tokens} tokens that can follow", "min_tokens")
        return SamplingParams(
            top_k=max(self.top_k, 0),
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()} or None,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            **limits._replace(max_tokens=max_tokens)._asdict(),
            **{name: getattr(self, name) for name in _TAKEN_AS_THEY_ARE},
        )

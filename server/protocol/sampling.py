"""The fields that say how tokens are chosen, and their translation to SamplingParams.

Ranges are OpenAI's where OpenAI has them, else vLLM's. What a request leaves out may come from the model's
generation_config.json (server.generation_config); text that is meant as tokens becomes tokens in server.state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator

from engine.errors import RequestError
from engine.protocol import SamplingParams
from server.protocol.fields import StopString, Strict, TokenId

MAX_LOGPROBS = 20
_MAX_BIASES = 1024
_MAX_ALLOWED = 8192
_TAKEN_AS_THEY_ARE = (  # fields of SamplingParams
    *("min_tokens", "temperature", "top_p", "min_p", "seed", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)


class Limits(NamedTuple):
    """Fields of SamplingParams; a max_tokens of None is what the context leaves."""

    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None = None


class SamplingFields(Strict):
    """How tokens are chosen, and where the output ends."""

    n: int = Field(1, ge=1, le=128, description="choices for each prompt")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, ge=0, le=1, description="likeliest tokens that together have this probability")
    top_k: int = Field(0, ge=-1, lt=1 << 31, description="number of likeliest tokens; 0 and -1 mean all")
    min_p: float = Field(0.0, ge=0, le=1, description="tokens at least this fraction as likely as the likeliest")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="taken off the logits of tokens in the output")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="the same, once for each time")
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, description="divides logits of tokens in prompt or output")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {},
        max_length=_MAX_BIASES,
        description="token id -> value added to its logit",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
    )
    allowed_token_ids: list[TokenId] = Field(
        [], max_length=_MAX_ALLOWED, fail_fast=True, description="the only tokens that can be chosen"
    )
    bad_words: list[StopString] = Field(
        [],
        max_length=128,
        fail_fast=True,
        description="words that the output never has, by the tokens they are made of",
    )
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63, description="the same seed gives the same tokens")
    stop: StopString | TokenId | Annotated[list[StopString | TokenId], Field(max_length=16, fail_fast=True)] = Field(
        [], description="strings (or token ids) that end the output and are not in it"
    )
    stop_token_ids: list[TokenId] = Field([], max_length=128, fail_fast=True, description="tokens that end the output")
    min_tokens: int = Field(0, ge=0, lt=1 << 31, description="no end before this many tokens")
    ignore_eos: bool = Field(False, description="go on after the model's end-of-sequence tokens")
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="report the prompt's logprobs, with so many alternatives each"
    )

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

    @property
    def num_sequences(self) -> int:
        """Sequences that are computed for each prompt."""
        return self.n

    @property
    def num_asked(self) -> int:
        """Tokens that one sequence may have at most, as far as the request says; 0 if it leaves that to the context."""
        return self._limits().max_tokens or 0

    @abstractmethod
    def _limits(self) -> Limits:
        """Return what each API says in fields of its own."""

    def sampling(self, room: int, defaults: Mapping[str, Any] | None = None) -> SamplingParams:
        """Return the engine's parameters, without `bad_words`.

        Args:
            room: how many tokens the context leaves after the longest prompt.
            defaults: values of fields of SamplingParams that the request leaves out.

        Raises:
            RequestError: min_tokens is more than what can follow.
        """
        defaults, limits = defaults or {}, self._limits()
        max_tokens = limits.max_tokens
        if max_tokens is None:
            max_tokens = max(1, min(room, defaults.get("max_tokens", room)))
        if self.min_tokens > max_tokens:
            raise RequestError(f"'min_tokens' must not exceed the {max_tokens} tokens that can follow", "min_tokens")
        stop = self.stop if isinstance(self.stop, list) else [self.stop]
        values = {name: getattr(self, name) for name in (*_TAKEN_AS_THEY_ARE, "top_k")}
        values |= {
            name: value for name, value in defaults.items() if name in values and name not in self.model_fields_set
        }
        values["top_k"] = max(values["top_k"], 0)
        return SamplingParams(
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()} or None,
            allowed_token_ids=tuple(dict.fromkeys(self.allowed_token_ids)),
            stop=tuple(item for item in stop if isinstance(item, str)),
            stop_token_ids=(*self.stop_token_ids, *(item for item in stop if isinstance(item, int))),
            **limits._replace(max_tokens=max_tokens)._asdict(),
            **values,
        )

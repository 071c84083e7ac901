"""What every request that generates text can say.

A field that is not listed is refused by name, never ignored. Null stands for the default: clients send it unasked.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from server.protocol.fields import Strict, fault
from server.protocol.neutral import NEUTRAL_VALUES, NeutralFields, asked_for
from server.protocol.sampling import SamplingFields
from server.protocol.schema import as_taken
from server.protocol.structured_outputs import StructuredOutputFields

MAX_SEQUENCES = 2048  # of one request, over all its prompts and n

CacheKey = Annotated[str, Field(min_length=1, max_length=1024)]


class StreamOptions(Strict):
    """stream_options: whether to report usage in a last chunk, or (vLLM's extension) in every chunk.

    Attributes:
        include_obfuscation: OpenAI pads its chunks against eavesdroppers who count bytes; here, only false is valid.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False

    @field_validator("include_obfuscation")
    @classmethod
    def _no_padding(cls, value: bool) -> bool:
        if value:
            raise ValueError("this server does not pad its chunks")
        return value


class GenerationRequest(SamplingFields, StructuredOutputFields, NeutralFields):
    """What both completion routes take."""

    model_config = ConfigDict(json_schema_extra=lambda schema: as_taken(schema, NEUTRAL_VALUES))

    model: Annotated[str, Field(max_length=1024)] | None = Field(None, description="default: the served model")
    skip_special_tokens: bool = Field(True, description="leave special tokens out of the text")
    stream: bool = Field(False, description="send server-sent events")
    stream_options: StreamOptions | None = Field(None, description="when a stream reports usage")
    return_token_ids: bool = Field(False, description="report token ids beside texts")
    priority: int = Field(0, ge=-(1 << 31), lt=1 << 31, description="for --policy priority: smaller is sooner")
    timeout: float | None = Field(None, gt=0, le=86400, description="seconds after which the request is ended")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        lt=1 << 31,
        description="keep the prompt's last so many tokens; -1: as many as the context leaves",
        json_schema_extra={"not": {"const": 0}},
    )
    cache_salt: CacheKey | None = Field(None, description="only requests with the same one share cached prefixes")
    prompt_cache_key: CacheKey | None = Field(None, description="the same, by OpenAI's name")

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        return asked_for(data, cls.model_fields, NEUTRAL_VALUES)

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _keeps_something(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("it must be -1, or at least 1")
        return value

    @model_validator(mode="after")
    def _stream_goes_with(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "'stream_options' goes with 'stream': true only")
        if self.usage_options.continuous_usage_stats and not self.usage_options.include_usage:
            message = "'stream_options.continuous_usage_stats' goes with 'include_usage': true only"
            raise fault("stream_options", message)
        if self.prompt_logprobs is not None and self.stream:
            raise fault("prompt_logprobs", "'prompt_logprobs' does not go with 'stream': true")
        return self

    @property
    def usage_options(self) -> StreamOptions:
        """When a stream reports usage."""
        return self.stream_options or StreamOptions()

    @property
    def salt(self) -> bytes:
        """What keeps cached prefixes apart from those of requests with other salts."""
        keys = (self.cache_salt, self.prompt_cache_key)
        return hashlib.sha256(repr(keys).encode()).digest() if any(keys) else b""

    @property
    def param_names(self) -> dict[str | None, str]:
        """The API's names of fields that have other names in the engine's errors."""
        return {}

    @abstractmethod
    def estimate_tokens(self) -> list[int]:
        """Return roughly how many tokens each prompt has, before any work on the prompts."""

    def truncate(self, token_ids: list[int], context: int, bos_id: int | None = None) -> list[int]:
        """Return the end of a prompt as truncate_prompt_tokens asks; a `bos_id` at its beginning stays."""
        keep = self.truncate_prompt_tokens
        if keep is None:
            return token_ids
        if keep == -1:
            keep = max(1, context - (self._limits().max_tokens or 1))
        if len(token_ids) <= keep:
            return token_ids
        head = token_ids[:1] if bos_id is not None and token_ids[0] == bos_id else []
        return (head + token_ids[len(token_ids) - keep + len(head) :])[:keep]

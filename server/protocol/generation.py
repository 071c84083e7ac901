"""What every request that generates text can say.

A field that is not listed is refused by name, never ignored. Null stands for the default: clients send it unasked.
"""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field, field_validator, model_validator

from server.protocol.fields import Strict, fault
from server.protocol.neutral import NEUTRAL_VALUES, NeutralFields
from server.protocol.prompts import PromptFields
from server.protocol.sampling import SamplingFields
from server.protocol.structured_outputs import StructuredOutputFields


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


class GenerationRequest(PromptFields, SamplingFields, StructuredOutputFields, NeutralFields):
    """What both completion routes take."""

    neutral_values = NEUTRAL_VALUES

    best_of: int | None = Field(
        None,
        ge=1,
        le=128,
        description="compute so many choices and give the n best, by a reasoning head's value or by mean logprob",
    )
    skip_special_tokens: bool = Field(True, description="leave special tokens out of the text")
    stream: bool = Field(False, description="send server-sent events")
    stream_options: StreamOptions | None = Field(None, description="when a stream reports usage")
    return_token_ids: bool = Field(False, description="report token ids beside texts")

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

    @model_validator(mode="after")
    def _best_of_goes_with(self) -> GenerationRequest:
        if self.best_of is not None and self.best_of < self.n:
            raise fault("best_of", "'best_of' must be at least 'n'")
        if self.num_sequences > self.n and self.stream:
            raise fault("best_of", "'best_of' does not go with 'stream': true, unless it equals 'n'")
        return self

    @property
    def num_sequences(self) -> int:
        return self.best_of or self.n

    def _logprobs(self, asked: int | None) -> int | None:
        """Return how many alternatives the engine reports: without a value, the best choices are told by logprobs."""
        return asked if self.num_sequences == self.n else asked or 0

    @property
    def usage_options(self) -> StreamOptions:
        """When a stream reports usage."""
        return self.stream_options or StreamOptions()

    @abstractmethod
    def estimate_tokens(self) -> list[int]:
        """Return roughly how many tokens each prompt has, before any work on the prompts."""

    @property
    def _num_reserved(self) -> int:
        return self._limits().max_tokens or 1

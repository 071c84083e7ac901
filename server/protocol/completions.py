"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator

from server.admission import estimate_tokens
from server.protocol.fields import TokenId, as_prompts, fault
from server.protocol.generation import GenerationRequest
from server.protocol.prompts import MAX_SEQUENCES
from server.protocol.sampling import MAX_LOGPROBS, Limits

_Many = Field(min_length=1, max_length=MAX_SEQUENCES)
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_Prompt = str | Annotated[list[str], _Many] | _TokenIds | Annotated[list[_TokenIds], _Many]  # for the schema alone


def _prompts(value: Any) -> list[str] | list[list[int]]:
    prompts = as_prompts(value)
    if len(prompts) > MAX_SEQUENCES:
        raise ValueError(f"it must not have more than {MAX_SEQUENCES} prompts")
    return prompts


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    # One entry for each prompt, as in all that `as_prompts` reads.
    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts, json_schema_input_type=_Prompt)]
    max_tokens: int = Field(16, ge=0, lt=1 << 31, description="0 goes with echo")
    max_completion_tokens: int | None = Field(
        None, ge=1, lt=1 << 31, description="chats' name of max_tokens, which wins: some clients send both"
    )
    echo: bool = Field(False, description="put the prompt in front of the text")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="alternatives to report for each token")
    suffix: Annotated[str, Field(max_length=1 << 22)] = Field(
        "", description="text that follows what is to be filled in; for models with fill-in-the-middle tokens"
    )

    @model_validator(mode="after")
    def _checks(self) -> CompletionRequest:
        if self.num_output_tokens == 0 and not self.echo:
            raise fault("max_tokens", "'max_tokens' must be at least 1, unless 'echo' is true")
        if self.min_tokens > self.num_output_tokens:
            raise fault("min_tokens", "'min_tokens' must not exceed 'max_tokens'")
        if self.suffix and (self.echo or self.truncate_prompt_tokens):
            raise fault("suffix", "'suffix' does not go with 'echo' and 'truncate_prompt_tokens'")
        if len(self.prompt) * self.num_sequences > MAX_SEQUENCES:
            raise ValueError(f"prompts times 'n' or 'best_of' must not exceed {MAX_SEQUENCES}")
        return self

    @property
    def num_output_tokens(self) -> int:
        """Output tokens at most, by whichever name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def param_names(self) -> dict[str | None, str]:
        return {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}

    def estimate_tokens(self) -> list[int]:
        beside = estimate_tokens(self.suffix) if self.suffix else 0
        return [estimate_tokens(prompt) + beside for prompt in self.prompt]

    def _limits(self) -> Limits:
        reports = (self.prompt_logprobs, self.logprobs if self.echo else None)
        prompt_logprobs = max((count for count in reports if count is not None), default=None)
        return Limits(self.num_output_tokens, self._logprobs(self.logprobs), prompt_logprobs)

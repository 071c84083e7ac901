"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator

from server.admission import estimate_tokens
from server.protocol.fields import fault
from server.protocol.generation import MAX_LOGPROBS, MAX_SEQUENCES, GenerationRequest, Limits


def _prompt(value: Any) -> Any:
    """Check a prompt by hand: for a union of lists, pydantic would report every fault once for each kind of list."""
    prompts = value if isinstance(value, list) and not _are_token_ids(value) else [value]
    if len(prompts) > MAX_SEQUENCES:
        raise ValueError(f"it must not have more than {MAX_SEQUENCES} prompts")
    if all(isinstance(prompt, str) for prompt in prompts) or all(map(_are_token_ids, prompts)):
        return value
    raise ValueError("it must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 31 for item in value)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], PlainValidator(_prompt)]
    max_tokens: int = Field(16, ge=0, lt=1 << 31)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _checks(self) -> CompletionRequest:
        if not self.prompts:
            raise fault("prompt", "'prompt' must not be empty")
        if self.max_tokens == 0 and not self.echo:
            raise fault("max_tokens", "'max_tokens' must be at least 1, unless 'echo' is true")
        if self.min_tokens > self.max_tokens:
            raise fault("min_tokens", "'min_tokens' must not exceed 'max_tokens'")
        if len(self.prompts) * self.n > MAX_SEQUENCES:
            raise ValueError(f"prompts times 'n' must not exceed {MAX_SEQUENCES}")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry for each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    def estimate_tokens(self) -> list[int]:
        return list(map(estimate_tokens, self.prompts))

    def _limits(self) -> Limits:
        return Limits(self.max_tokens, self.logprobs, self.logprobs if self.echo else None)

"""What every request that brings prompts can say, whatever is computed of them: whose, when, how much of each."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from server.protocol.neutral import AskedFields

if TYPE_CHECKING:
    from server.inputs import ModelInput

MAX_SEQUENCES = 2048  # of one request, over all its prompts and n

CacheKey = Annotated[str, Field(min_length=1, max_length=1024)]


class PromptFields(AskedFields):
    """Which model, how prompts are scheduled and cached, and how they are cut."""

    model: Annotated[str, Field(max_length=1024)] | None = Field(None, description="default: the served model")
    modality: Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="what the prompt is, for models that tell code from text; default: code is what stands in fences",
        json_schema_extra={"enum": ["text", "code", None]},
    )
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

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _keeps_something(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("it must be -1, or at least 1")
        return value

    @property
    def salt(self) -> bytes:
        """What keeps cached prefixes apart from those of requests with other salts."""
        keys = (self.cache_salt, self.prompt_cache_key)
        return hashlib.sha256(repr(keys).encode()).digest() if any(keys) else b""

    @property
    def param_names(self) -> dict[str | None, str]:
        """The API's names of fields that have other names in the engine's errors."""
        return {}

    def truncate(self, prompt: ModelInput, context: int, bos_id: int | None = None) -> ModelInput:
        """Return the end of a prompt as truncate_prompt_tokens asks; a `bos_id` at its beginning stays."""
        keep = self.num_kept(context)
        if keep is None or len(prompt) <= keep:
            return prompt
        num_first = int(bos_id is not None and prompt.token_ids[0] == bos_id)
        return (prompt[:num_first] + prompt[len(prompt) - keep + num_first :])[:keep]

    def num_kept(self, context: int) -> int | None:
        """Return how many tokens of a prompt's end truncate_prompt_tokens keeps; None is all of them."""
        keep = self.truncate_prompt_tokens
        return max(1, context - self._num_reserved) if keep == -1 else keep

    @property
    def _num_reserved(self) -> int:
        """Tokens of the context that the longest prompt leaves for output."""
        return 0

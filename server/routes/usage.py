"""OpenAI's `usage` object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.generation import Generation


def usage(generation: Generation) -> dict[str, Any]:
    """Tokens so far."""
    return {
        "prompt_tokens": generation.num_prompt_tokens,
        "completion_tokens": generation.num_output_tokens,
        "total_tokens": generation.num_prompt_tokens + generation.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }

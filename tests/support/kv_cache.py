"""What tests of a quantised KV cache ask a model, whatever the cache's number type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.running import generate, greedy_params, load

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [[(7 * i + j * j) % 250 for j in range(length)] for i, length in enumerate((3, 90, 31, 64, 200))]


def top_logprobs(model: Path, **options: Any) -> list[Any]:
    """The likeliest first token of four prompts, with its log-probability, under these settings."""
    results = generate(load(model, **options), PROMPTS[:4], greedy_params(1, logprobs=1))
    return [result.logprobs[0].top_logprobs[0] for result in results]

"""Sequences as the engine makes them, for tests of the parts that hold or read them."""

from __future__ import annotations

from typing import Any

from engine.protocol import SamplingParams, Terms
from engine.sequence import Sequence


def make_sequence(
    name: str = "s",
    num_prompt_tokens: int = 1,
    *,
    output: tuple[int, ...] = (),
    prompt: list[int] | None = None,
    seed: int = 0,
    index: int = 0,
    stop_token_ids: tuple[int, ...] = (),
    terms: Terms | None = None,
    **sampling: Any,
) -> Sequence:
    """A waiting sequence; its prompt is zeros unless given."""
    prompt = [0] * num_prompt_tokens if prompt is None else prompt
    return Sequence(
        request_id=name,
        index=index,
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(**sampling),
        seed=seed,
        stop_token_ids=frozenset(stop_token_ids),
        terms=terms or Terms(0.0),
    )

"""Prompts whose middle the model fills in: which tokens say so differs between models, and the vocabulary tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class FillInMiddle(NamedTuple):
    """The ids of the tokens before the prefix, between it and the suffix, and before the middle."""

    prefix: int
    suffix: int
    middle: int


_NAMES = (
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # CodeLlama
)


def find_tokens(token_to_id: Callable[[str], int | None]) -> FillInMiddle | None:
    """Return a vocabulary's tokens for this; None if it has none."""
    for names in _NAMES:
        ids = [token_id for token_id in map(token_to_id, names) if token_id is not None]
        if len(ids) == len(names):
            return FillInMiddle(*ids)
    return None

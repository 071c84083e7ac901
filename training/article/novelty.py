"""Finds texts that say what earlier ones said: copies, and those whose lines or sentences are mostly known."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHORTEST = 20  # characters of a unit that counts: "return result" is in every text


class Novelty:
    """Remembers 8 bytes for each unit (a line or a sentence) that it was told of."""

    def __init__(self, most_known: float = 0.3) -> None:
        """`most_known` is the share of a text's units, by characters, that may be known."""
        self._most_known = most_known
        self._known: set[bytes] = set()

    def take(self, units: Sequence[str]) -> bool:
        """Return whether a text is new, and remember it if it is."""
        words = [" ".join(unit.lower().split()) for unit in units]
        long = [
            (hashlib.blake2b(unit.encode(errors="replace"), digest_size=8).digest(), len(unit))
            for unit in words
            if len(unit) >= _SHORTEST
        ]
        known = sum(length for digest, length in long if digest in self._known)
        if known > self._most_known * sum(length for _, length in long):
            return False
        self._known.update(digest for digest, _ in long)
        return True

"""Hashes of a sequence's blocks: by them, others that begin with the same tokens find these blocks.

A hash depends on all tokens of the block and of those before it, on their modalities, and on the salt of the tenant. It
does not depend on the group of layers: PrefixCache's keys tell groups apart.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.sequence import Sequence


class BlockHashes:
    """The hashes of one sequence's full blocks, as far as they were asked for."""

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes: list[bytes] = []

    def of(self, seq: Sequence, number: int, block_size: int) -> bytes:
        """The hash of a block by its number; each is computed once, after those before it."""
        hashes = self._hashes
        while len(hashes) <= number:
            first, stop = len(hashes) * block_size, (len(hashes) + 1) * block_size
            tokens = array("q", seq.token_ids[first:stop])
            if modalities := seq.modalities_of(first, stop):  # equal tokens of others have other keys and values
                tokens = array("q", (token | kind << 32 for token, kind in zip(tokens, modalities, strict=True)))
            before = hashes[-1] if hashes else seq.scheduling.prefix_salt
            hashes.append(hashlib.sha256(before + tokens.tobytes()).digest())
        return hashes[number]

"""Which replica should have the beginning of a prompt in its cache, as far as that shows from what was sent to it.

Knows hashes of blocks and names of replicas; no Ray, no engine. What a replica really has cached is its engine's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_BLOCK_SIZE = 16  # tokens; the engine's default
_CAPACITY = 1 << 16  # blocks remembered of a replica: a million tokens


class SentPrefixes:
    """The blocks of prompts that each replica was sent; of each replica, those used last."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._blocks: dict[str, OrderedDict[bytes, None]] = {}

    def add(self, replica: str, hashes: list[bytes]) -> None:
        """Note that a replica was sent a prompt."""
        blocks = self._blocks.setdefault(replica, OrderedDict())
        for block_hash in reversed(hashes):  # so that the end of a prefix is forgotten before its beginning
            blocks[block_hash] = None
            blocks.move_to_end(block_hash)
        while len(blocks) > self._capacity:
            blocks.popitem(last=False)

    def keep(self, replicas: Collection[str]) -> None:
        """Forget all other replicas."""
        self._blocks = {replica: blocks for replica, blocks in self._blocks.items() if replica in replicas}

    def choose(self, hashes: list[bytes], loads: Mapping[str, int], slack: int) -> str | None:
        """The replica that was sent the longest beginning of a prompt; of several, the one with the least load.

        A replica with more than `slack` requests beyond the least loaded one is passed over. None if no replica that
        is left was sent any of the prompt.
        """
        most = min(loads.values()) + slack
        lengths = {name: self._length(name, hashes) for name, load in loads.items() if load <= most}
        longest = max(lengths.values())
        if not longest:
            return None
        return min((name for name, length in lengths.items() if length == longest), key=loads.__getitem__)

    def _length(self, replica: str, hashes: list[bytes]) -> int:
        blocks = self._blocks.get(replica, OrderedDict[bytes, None]())
        return next((number for number, block_hash in enumerate(hashes) if block_hash not in blocks), len(hashes))


def hash_blocks(token_ids: list[int], salt: bytes) -> list[bytes]:
    """A hash for each full block of a prompt: of its tokens, of all before it, and of the salt, which is a tenant's."""
    hashes: list[bytes] = []
    previous = salt
    for first in range(0, len(token_ids) - _BLOCK_SIZE + 1, _BLOCK_SIZE):
        tokens = array("q", token_ids[first : first + _BLOCK_SIZE])
        previous = hashlib.blake2b(previous + tokens.tobytes(), digest_size=16).digest()
        hashes.append(previous)
    return hashes

"""Incremental detokenising: token ids go in one by one, pieces of whole characters come out.

The pieces join to the decode of all ids at once. A character's bytes can be spread over several tokens, so the bytes of
an unfinished character are held back. At the end `flush` returns them; an unfinished character is U+FFFD.
"""

from __future__ import annotations

import codecs
from functools import cache
from typing import TYPE_CHECKING, Protocol

from tokenizers import decoders

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """One sequence's text so far."""

    def push(self, token_id: int) -> str:
        """Take a token; return the text that no later token can change."""

    def flush(self) -> str:
        """Return what was held back."""


class TokenBytes:
    """The bytes of each token of a byte-level vocabulary (the kind of GPT-2 and DeepSeek); each is looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.special = special_ids(tokenizer)
        self._known: dict[int, bytes] = {}

    def of(self, token_id: int, *, skip_special: bool) -> bytes:
        """Return a token's bytes: none if the tokenizer lacks the id, or if the token is special and skipped."""
        if skip_special and token_id in self.special:
            return b""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = _token_to_bytes(self._tokenizer.id_to_token(token_id) or "")
        return known


class ByteLevelDetokenizer:
    """Decodes UTF-8 incrementally, since every token is a string of bytes. Exact, and O(1) for each token."""

    def __init__(self, token_bytes: TokenBytes, *, skip_special: bool, keep: Collection[int] = ()) -> None:
        """`keep` has special tokens that are not skipped."""
        self._token_bytes, self._skip_special, self._keep = token_bytes, skip_special, keep
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        skip_special = self._skip_special and token_id not in self._keep
        return self._decoder.decode(self._token_bytes.of(token_id, skip_special=skip_special))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For all other decoders: decodes a short window of ids again with each token, and returns what the text gained.

    The window starts at a token where no character was unfinished. Some decoders treat the first token in a way of its
    own (they strip a space). Both decodes start at the same token, so the difference between them is right. Tokenizers'
    own DecodeStream fails here: it raises where a broken character follows a whole one in one run of byte tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool, keep: Collection[int] = (), after: Sequence[int] = ()
    ) -> None:
        """`keep` has special tokens that are not skipped; `after` has the ids before, behind which a space is kept."""
        self._tokenizer = tokenizer
        self._skipped = special_ids(tokenizer).difference(keep) if skip_special else set()
        self._ids = [token_id for token_id in after[-1:] if not self._decode([token_id]).endswith(_REPLACEMENT)]
        self._whole = len(self._ids)  # number of ids whose text has been returned

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._ids.append(token_id)
        old, new = self._decode(self._ids[: self._whole]), self._decode(self._ids)
        if new.endswith(_REPLACEMENT) or len(new) <= len(old):
            return ""
        self._ids = self._ids[self._whole :]
        self._whole = len(self._ids)
        return new[len(old) :]

    def flush(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._whole])) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Return the ids of special tokens, which are no part of a text."""
    return {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer's tokens are bytes in GPT-2's alphabet."""
    return isinstance(tokenizer.decoder, decoders.ByteLevel)


def _token_to_bytes(token: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:  # an added token outside the alphabet stands for itself
        return token.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py), character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

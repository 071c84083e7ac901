"""The bytes that each token of a vocabulary stands for, all at once: what grammars are matched on (engine.grammars)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from engine.protocol import Vocabulary
from server.text.detokenizer import byte_alphabet, is_byte_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Tokenizer

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # SentencePiece's name of a byte that no other token has


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return the vocabulary of a tokenizer of either kind: byte-level, or SentencePiece's."""
    ids: dict[str, int] = tokenizer.get_vocab()
    to_bytes = _byte_level() if is_byte_level(tokenizer) else _sentence_piece(tokenizer)
    tokens = [b""] * (max(ids.values()) + 1)
    for token, token_id in ids.items():
        tokens[token_id] = to_bytes(token)
    added = tokenizer.get_added_tokens_decoder()
    return Vocabulary(tokens, sorted(token_id for token_id, token in added.items() if token.special))


def _byte_level() -> Callable[[str], bytes]:
    alphabet = {ord(char): byte for char, byte in byte_alphabet().items()}
    outside = re.compile(f"[^{re.escape(''.join(map(chr, alphabet)))}]")

    def to_bytes(token: str) -> bytes:
        """As TokenBytes: an added token outside the alphabet stands for itself."""
        return token.encode() if outside.search(token) else token.translate(alphabet).encode("latin-1")

    return to_bytes


def _sentence_piece(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    steps = list(_decoder_steps(json.loads(tokenizer.to_str())["decoder"]))
    has_bytes = any(step["type"] == "ByteFallback" for step in steps)
    spaces = {space for step in steps if (space := _space_of(step)) is not None}

    def to_bytes(token: str) -> bytes:
        if has_bytes and (found := _BYTE.fullmatch(token)):
            return bytes([int(found[1], 16)])
        for space in spaces:
            token = token.replace(space, " ")
        return token.encode()

    return to_bytes


def _decoder_steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the steps of a decoder, which may be a sequence of them."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _decoder_steps(step)
    else:
        yield decoder


def _space_of(step: dict[str, Any]) -> str | None:
    """Return what a decoder's step turns into a space."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    if step["type"] == "Replace" and step["content"] == " " and "String" in step["pattern"]:
        return str(step["pattern"]["String"])
    return None

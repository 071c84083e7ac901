"""Grammars without a model: a vocabulary of bytes, and texts that are drawn at random from what a grammar allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.grammars import Compiler
from engine.protocol import Vocabulary

if TYPE_CHECKING:
    import random

    from engine.grammars import Matcher

EOS_ID = 257  # as in tests.support.tiny
VOCAB_SIZE = 258
BYTES = Vocabulary([bytes([i]) for i in range(256)] + [b"<|bos|>", b"<|eos|>"], [256, EOS_ID])


def compiler() -> Compiler:
    return Compiler(BYTES, VOCAB_SIZE, (EOS_ID,))


def allowed(mask: bytes) -> list[int]:
    """The tokens of a mask."""
    bits = int.from_bytes(mask, "little")
    return [i for i in range(len(mask) * 8) if bits >> i & 1]


def feed(matcher: Matcher, text: str | bytes) -> str | None:
    """Have a matcher accept a text; why that ended it, or "refused" if it does not allow it."""
    reason = None
    for byte in text.encode() if isinstance(text, str) else text:
        if reason is not None or byte not in allowed(matcher.mask):
            return "refused"
        reason = matcher.accept(byte)
    return reason


def matches(compiler: Compiler, grammar: str, text: str) -> bool:
    """Whether a grammar allows just this text."""
    matcher = compiler.start(compiler.compile(grammar), (EOS_ID,))
    reason = feed(matcher, text)
    return reason == "stop" or (reason is None and EOS_ID in allowed(matcher.mask))


def draw(matcher: Matcher, rng: random.Random, max_bytes: int = 400) -> str | None:
    """A text that ends, at random; None if it is not finished after so many bytes."""
    text = bytearray()
    while len(text) < max_bytes:
        tokens = allowed(matcher.mask)
        if EOS_ID in tokens and (len(tokens) == 1 or rng.random() < 0.3):
            return text.decode()
        closing = [i for i in tokens if len(text) > 60 and i < 256 and i in b'"}],:']  # else few would end
        text.append(rng.choice(closing if closing and rng.random() < 0.6 else [i for i in tokens if i < 256]))
        reason = matcher.accept(text[-1])
        if reason is not None:
            assert reason == "stop", bytes(text)
            return text.decode()
    return None

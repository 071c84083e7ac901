"""Tries grammars before the engine gets them: `python -m engine.grammar_check`, a process that may be killed.

Compiling cannot be interrupted, and llguidance does not bound it for every input. Who asks limits the time, by killing
the process (server.grammar.checker); the memory is limited here. Standard input brings frames of MessagePack, each
behind its length in four bytes: first [Vocabulary, vocab_size], then grammars. Each grammar is answered on standard
output by [the same in Lark, the reason against it], which is empty for none.
"""

from __future__ import annotations

import json
import logging
import os
import random
import struct
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import RequestError
from engine.grammars import Compiler
from engine.host_memory import limit_address_space
from engine.names import name_process
from engine.protocol import Vocabulary

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_MEMORY = 3 << 30  # bytes of addresses
GBNF = "%gbnf\n"  # marks a grammar that is not in Lark
_NUM_TRIED = 24  # tokens
_LENGTH = struct.Struct("<I")


def write_frame(stream: BinaryIO, message: Any) -> None:
    """Send a message."""
    data = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: BinaryIO, kind: Any) -> Any:
    """Wait for a message of this type.

    Raises:
        EOFError: the other end is gone.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = stream.read(_LENGTH.unpack(head)[0])
    return msgspec.msgpack.decode(data, type=kind)


def main() -> int:
    """Answer until standard input ends."""
    limit_address_space(MAX_MEMORY)
    os.nice(10)  # running streams go first
    name_process("grammars")
    logging.disable()  # all that there is to say is in the answers
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        vocabulary, vocab_size = read_frame(requests, tuple[Vocabulary, int])
        compiler = Compiler(vocabulary, vocab_size, ())
        while True:
            write_frame(answers, check(compiler, read_frame(requests, str)))
    except EOFError:
        return 0


def check(compiler: Compiler, grammar: str) -> tuple[str, str]:
    """The grammar in Lark, and the reason against it: it cannot be compiled, or not be followed for some tokens."""
    rng = random.Random(0)  # noqa: S311 - the same choices for the same grammar
    try:
        grammar = _in_lark(grammar)
        matcher = compiler.start(compiler.compile(grammar), ())
    except RequestError as error:
        return grammar, str(error)
    for _ in range(_NUM_TRIED):
        reason = matcher.accept(_some_token(matcher.mask, rng))
        if reason is not None:
            return grammar, "it is too large or too ambiguous to be followed" if reason == "error" else ""
    return grammar, ""


def _in_lark(grammar: str) -> str:
    """A grammar, or a list of grammars, whose parts in GBNF are translated."""
    if grammar.startswith(GBNF):
        return _from_gbnf(grammar.removeprefix(GBNF))
    if not grammar.startswith("{"):
        return grammar
    several = json.loads(grammar)
    for one in several["grammars"]:
        one["lark_grammar"] = _in_lark(one["lark_grammar"])
    return json.dumps(several, ensure_ascii=False)


def _from_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise RequestError("the grammar is nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - it raises bare Exception, IndexError and more for bad text
        raise RequestError(f"it is neither Lark (with a rule 'start') nor GBNF (with a rule 'root'): {error}") from None


def _some_token(mask: bytes, rng: random.Random) -> int:
    """One of the tokens that a mask allows."""
    first = rng.randrange(len(mask))
    place = next(i % len(mask) for i in range(first, first + len(mask)) if mask[i % len(mask)])
    return place * 8 + rng.choice([bit for bit in range(8) if mask[place] >> bit & 1])


if __name__ == "__main__":
    sys.exit(main())

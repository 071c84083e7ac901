"""What output must match: compiles grammars beside the steps, and says which tokens a sequence may have next.

A grammar is llguidance's Lark text (https://github.com/guidance-ai/llguidance, docs/syntax.md). Owns the compiled ones
and their cache; where one sequence stands in its grammar is a `Matcher`, which the Sequence owns. Every grammar is
bounded: in the work that it may cause, by _LIMITS; before that, in its size and in the time to compile it, by whoever
sends it (engine.grammar_check).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from engine.errors import RequestError
from engine.names import name_thread

if TYPE_CHECKING:
    from collections.abc import Collection

    from llguidance import LLMatcher, LLTokenizer

    from engine.protocol import FinishReason, Vocabulary
    from engine.sequence import Sequence

logger = logging.getLogger(__name__)

_LIMITS: dict[str, Any] = {
    "max_items_in_row": 1000,  # alternatives at one position; an object's optional properties are four each
    "verbose_errors": False,
}
# Seconds of this thread that a sequence's masks may take: an ambiguous grammar takes ever more. Others take about 10 us
# a token, and some milliseconds for the first ones.
_MASK_TIME, _MASK_TIME_PER_TOKEN = 0.5, 0.001
_MAX_CACHED = 64  # compiled grammars
_MAX_CACHED_CHARS = 8 << 20  # of their texts
_MAX_TOKENS = 20_000  # that a compiled grammar is used for: its automaton grows with them, and is bounded
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'  # the model chooses how text is split into tokens


class Compiled:
    """A grammar that sequences can start on, and how many tokens they have had of it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher, self.num_tokens = matcher, 0


class Matcher:
    """Where one sequence stands in its grammar.

    Attributes:
        mask: the tokens that may come next (engine.step.Sample); stop tokens only where the text may end.
    """

    def __init__(self, compiled: Compiled, vocab_size: int, stop_token_ids: Collection[int]) -> None:
        """Start at the beginning.

        Raises:
            RequestError: the grammar allows nothing, or no text but the empty one.
        """
        self._matcher = compiled.matcher.deep_copy()  # which shares what was computed with the others
        self._compiled, self._vocab_size, self._stop_token_ids = compiled, vocab_size, stop_token_ids
        self._time_left = _MASK_TIME
        self.mask = b""
        if (end := self._look_ahead()) is not None:
            reason = _reason(self._matcher) if end == "error" else "it matches no text but the empty one"
            raise RequestError(reason, "grammar")

    def accept(self, token_id: int) -> FinishReason | None:
        """Take in the token that was chosen; "stop" if the text is complete and no token can follow it."""
        started = time.thread_time()
        self._compiled.num_tokens += 1
        if not self._matcher.consume_token(token_id):
            return self._fail()
        reason = self._look_ahead()
        self._time_left += _MASK_TIME_PER_TOKEN - (time.thread_time() - started)
        if reason is None and self._time_left < 0:
            return self._fail("it takes too long, as ambiguous ones do")
        return reason

    def _look_ahead(self) -> FinishReason | None:
        """Find what may come next; why the sequence ends, if it does."""
        if self._matcher.is_stopped():
            return self._fail() if self._matcher.is_error() else "stop"
        mask = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_error():
            return self._fail()
        byte, bit = self._vocab_size >> 3, 1 << (self._vocab_size & 7)
        may_end = bool(mask[byte] & bit)
        mask[byte] &= ~bit & 0xFF
        if mask.count(0) == len(mask):
            return "stop" if may_end else self._fail()
        if may_end:
            for token_id in self._stop_token_ids:
                mask[token_id >> 3] |= 1 << (token_id & 7)
        self.mask = bytes(mask)
        return None

    def _fail(self, reason: str = "") -> FinishReason:
        logger.warning("a grammar cannot be followed further: %s", reason or _reason(self._matcher))
        self._compiled.num_tokens = _MAX_TOKENS  # the next sequence is to have a new one
        return "error"


class Compiler:
    """Makes matchers for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        """Tokens beyond vocab_size, the width of the logits, do not count; ids beyond the vocabulary stand for nothing.

        The end of a text is a token of its own behind all others, so that a mask tells whether the text may end.
        """
        tokens = vocabulary.tokens[:vocab_size] + [b""] * (vocab_size - len(vocabulary.tokens)) + [b"<end>"]
        special = {*vocabulary.special_token_ids, *eos_token_ids}
        self.vocab_size = vocab_size
        self._tokenizer = _tokenizer(tokens, [i for i in special if i < vocab_size] + [vocab_size])

    def compile(self, grammar: str) -> Compiled:
        """Compile a grammar; other threads run meanwhile.

        Raises:
            RequestError: with llguidance's reason.
        """
        from llguidance import LLMatcher, LLParserLimits

        if not grammar.lstrip().startswith("{"):  # a list of grammars, in JSON, says it itself
            grammar += _NO_FORCING
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        if matcher.is_error():
            raise RequestError(_reason(matcher), "grammar")
        return Compiled(matcher)

    def start(self, compiled: Compiled, stop_token_ids: Collection[int]) -> Matcher:
        """A matcher at the beginning of a compiled grammar. Raises as Matcher does."""
        return Matcher(compiled, self.vocab_size, stop_token_ids)


class Grammars:
    """The engine's grammars: compiled in threads, kept for the next request that has the same."""

    def __init__(self, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._vocabulary: Vocabulary | None = None
        self._compiler: Compiler | None = None
        self._threads = ThreadPoolExecutor(2, "grammar", name_thread, ("grammar",))  # each starts when it is needed
        self._cached: OrderedDict[str, Future[Compiled]] = OrderedDict()  # the one used last is last
        self._num_chars = 0  # of the cached grammars
        self._pending: list[tuple[Sequence, Future[Compiled]]] = []

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take the vocabulary, which must come before the first grammar."""
        if vocabulary != self._vocabulary:
            self._vocabulary, self._compiler = vocabulary, None
            self._cached.clear()
            self._num_chars = 0

    @property
    def are_compiling(self) -> bool:
        """Whether a sequence waits for its grammar."""
        return bool(self._pending)

    def compile(self, seq: Sequence, grammar: str) -> None:
        """Begin to compile a sequence's grammar; `ready` says when it is done."""
        self._pending.append((seq, self._future(grammar)))

    def ready(self, timeout: float) -> list[tuple[Sequence, Matcher | None]]:
        """The sequences whose grammar is compiled by now, each with its matcher, or None if the grammar is at fault.

        Where none is, wait for one, so many seconds at most.
        """
        if not self._pending:
            return []
        done, not_done = wait([future for _, future in self._pending], timeout, FIRST_COMPLETED)  # asked just once
        ready = [(seq, future) for seq, future in self._pending if future in done]
        self._pending = [(seq, future) for seq, future in self._pending if future in not_done]
        return [(seq, self._start(seq, future)) for seq, future in ready]

    def check(self, grammar: str) -> None:
        """Compile a grammar now.

        Raises:
            RequestError: it cannot be compiled, or matches nothing.
        """
        compiler = self._require_compiler()
        compiler.start(self._future(grammar).result(), ())

    def _start(self, seq: Sequence, future: Future[Compiled]) -> Matcher | None:
        error = future.exception()  # of whatever kind: a compiler that panics ends a sequence, not the engine
        if error is None:
            try:
                return self._require_compiler().start(future.result(), seq.stop_token_ids)
            except RequestError as refused:
                error = refused
        logger.warning("the grammar of request %s cannot be used: %r", seq.request_id, error)
        return None

    def _future(self, grammar: str) -> Future[Compiled]:
        future = self._cached.get(grammar)
        if future is not None and not _is_worn(future):
            self._cached.move_to_end(grammar)
            return future
        if future is None:
            self._num_chars += len(grammar)
        future = self._cached[grammar] = self._threads.submit(self._require_compiler().compile, grammar)
        self._cached.move_to_end(grammar)
        while len(self._cached) > 1 and (len(self._cached) > _MAX_CACHED or self._num_chars > _MAX_CACHED_CHARS):
            self._num_chars -= len(self._cached.popitem(last=False)[0])
        return future

    def _require_compiler(self) -> Compiler:
        if self._compiler is None:
            assert self._vocabulary is not None, "a grammar came before the vocabulary"
            started = time.monotonic()
            self._compiler = Compiler(self._vocabulary, self._vocab_size, self._eos_token_ids)
            logger.info("ready for grammars after %.2f s", time.monotonic() - started)
        return self._compiler


def _is_worn(future: Future[Compiled]) -> bool:
    """Whether a compiled grammar has had its tokens."""
    return future.done() and future.exception() is None and future.result().num_tokens >= _MAX_TOKENS


def _tokenizer(tokens: list[bytes], special_token_ids: list[int]) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    class Tokens:
        """What TokenizerWrapper asks of a tokenizer; texts are never tokenised here, see _NO_FORCING."""

        eos_token_id = len(tokens) - 1
        bos_token_id = None

        def __init__(self) -> None:
            self.tokens, self.special_token_ids = tokens, special_token_ids

        def __call__(self, _: bytes) -> list[int]:
            return []

    return LLTokenizer(TokenizerWrapper(Tokens()))


def _reason(matcher: LLMatcher) -> str:
    """An error in llguidance's words, in one line; what follows shows a text that no user wrote."""
    first, *others = matcher.get_error().strip().split("\n")
    first = first.removeprefix("at 1(8): ").removeprefix("failed to compile JSON schema: ")
    more = next((line.removeprefix("error:") for line in others if line.startswith("error:")), "")  # of a regex
    return (first + more)[:400] or "it cannot be used"

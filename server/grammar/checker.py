"""Tries each grammar once before the engine gets it, in a process that is killed when that takes too long.

Owns the processes (engine.grammar_check), the verdicts, and the vocabulary that they and the engine match on. All is
made at the first grammar: a server that sees none pays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineUnavailableError, RequestError
from engine.grammar_check import read_frame, write_frame
from server.large import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen

    from engine.protocol import Vocabulary
    from server.engine_client import EngineClient
    from server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_NUM_PROCESSES = 2  # grammars that are tried at a time
_MAX_VERDICTS = 1024
_MAX_VERDICT_CHARS = 16 << 20  # of the grammars that they are about
_START_TIMEOUT = 30.0  # seconds in which a new process must have read the vocabulary
_FAULTS = (OSError, EOFError, TimeoutError, msgspec.DecodeError)  # of a process that ended, or had to be ended
_Verdict = tuple[str, str]  # a grammar in Lark, and the reason against it
_TRIVIAL = 'start: "a"\n'


class GrammarChecker:
    """Says whether grammars can be used; see the module's words."""

    def __init__(self, tokenizer: Tokenizer, client: EngineClient, max_size: int, timeout: float) -> None:
        """`max_size` is a grammar's characters at most, `timeout` the seconds that one may take to compile."""
        self._tokenizer, self._client, self._max_size, self._timeout = tokenizer, client, max_size, timeout
        self._verdicts: OrderedDict[str, _Verdict] = OrderedDict()  # the one used last is last
        self._num_chars = 0  # of the grammars there
        self._places = asyncio.Semaphore(_NUM_PROCESSES)
        self._learning = threading.Lock()
        self._idle: list[_Process] = []
        self._processes: set[Popen[bytes]] = set()
        weakref.finalize(self, _end, self._processes)  # also when Python ends

    async def grammar(self, make: Callable[[], str | None]) -> str | None:
        """Make a grammar and try it, in a thread; the grammar in Lark, or None if `make` gives none.

        Raises:
            RequestError: with the reason against it.
        """
        grammar = await in_thread(make)
        if grammar is None:
            return None
        if len(grammar) > self._max_size:
            raise RequestError(f"it has {len(grammar)} characters; this server takes {self._max_size}")
        if not grammar.isascii() and _has_surrogate(grammar):
            raise RequestError("it is not valid Unicode: it has half a surrogate pair")
        if (verdict := self._kept(grammar)) is None:
            async with self._places:  # while this one waited, another request may have had the same tried
                if (verdict := self._kept(grammar)) is None:
                    verdict = await asyncio.to_thread(self._try, grammar)
                    self._keep(grammar, verdict)
        in_lark, reason = verdict
        if reason:
            raise RequestError(reason)
        return in_lark

    def _try(self, grammar: str) -> _Verdict:
        """The grammar in Lark, and the reason against it; empty for none."""
        process = self._take_idle() or self._start()
        try:
            verdict = process.ask(grammar, self._timeout)
        except TimeoutError as error:
            self._discard(process)
            logger.warning("a grammar was given up: %s", error)
            return "", f"it takes more than {self._timeout:g} s to compile"
        except _FAULTS as error:
            status = process.status()
            self._discard(process)
            logger.warning("a grammar was given up: the process that tried it ended with %s (%r)", status, error)
            return "", "this grammar cannot be compiled: the compiler failed on it, or needed too much memory"
        self._idle.append(process)
        return verdict

    def _take_idle(self) -> _Process | None:
        """A process that waits for a grammar; those that have died meanwhile are left behind."""
        with contextlib.suppress(IndexError):  # none is left; another thread may have taken the last one just now
            while True:
                process = self._idle.pop()
                if process.popen.poll() is None:
                    return process
                self._discard(process)
        return None

    def _start(self) -> _Process:
        vocabulary, info = self._vocabulary(), self._client.require_info()
        process = _Process()
        self._processes.add(process.popen)
        try:
            process.tell((vocabulary, info.vocab_size))
            process.ask(_TRIVIAL, _START_TIMEOUT)
        except _FAULTS as error:
            self._discard(process)
            logger.error("the process that tries grammars does not start: %s", error)
            raise EngineUnavailableError("Grammars cannot be compiled now. Please try again.") from None
        return process

    def _vocabulary(self) -> Vocabulary:
        with self._learning:
            if self._client.vocabulary is None:
                self._client.vocabulary = self._tokenizer.vocabulary()
            return self._client.vocabulary

    def _discard(self, process: _Process) -> None:
        self._processes.discard(process.popen)
        _end({process.popen})

    def _kept(self, grammar: str) -> _Verdict | None:
        if (verdict := self._verdicts.get(grammar)) is not None:
            self._verdicts.move_to_end(grammar)
        return verdict

    def _keep(self, grammar: str, verdict: _Verdict) -> None:
        if self._verdicts.pop(grammar, None) is None:  # two requests may have had it tried at once
            self._num_chars += len(grammar)
        self._verdicts[grammar] = verdict
        while len(self._verdicts) > 1 and (len(self._verdicts) > _MAX_VERDICTS or self._num_chars > _MAX_VERDICT_CHARS):
            self._num_chars -= len(self._verdicts.popitem(last=False)[0])


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can carry one
        return True
    return False


class _Process:
    """One process that tries grammars, a grammar at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "engine.grammar_check"]  # -P: not from the working directory
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)

    def tell(self, message: object) -> None:
        assert self.popen.stdin is not None
        write_frame(self.popen.stdin, message)  # type: ignore[arg-type]

    def ask(self, grammar: str, timeout: float) -> _Verdict:
        """The grammar in Lark, and the reason against it.

        Raises:
            TimeoutError: no answer came. EOFError, OSError: the process has ended.
        """
        assert self.popen.stdout is not None
        self.tell(grammar)
        poll = select.poll()
        poll.register(self.popen.stdout, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"no answer in {timeout:g} s")
        verdict: _Verdict = read_frame(self.popen.stdout, _Verdict)  # type: ignore[arg-type]
        return verdict

    def status(self) -> str:
        """How the process ended, in words for the log; it has closed its pipe."""
        try:
            code = self.popen.wait(1.0)
        except subprocess.TimeoutExpired:
            return "no status yet"
        return signal.strsignal(-code) or f"signal {-code}" if code < 0 else f"status {code}"


def _end(processes: set[Popen[bytes]]) -> None:
    """Kill and leave nothing behind."""
    for process in processes:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not written yet
                    pipe.close()
        process.wait()

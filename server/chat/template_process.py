"""A process that renders one chat template, with limits on time and memory: a template that loops stops nobody.

The process starts with the first text, stays, and renders one text after another. A text that takes too long ends the
process, by an alarm that no template can put off; the next text starts another. Texts cross its pipes as lines of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any

from engine.errors import DeepseekServeError, DrainingError, RequestError
from engine.host_memory import limit_address_space
from engine.logs import configure, configured_format
from engine.names import name_process, name_thread
from server.chat.chat_template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_MAX_MEMORY = 1 << 30  # bytes of address space
_STOPPED = "The server is shutting down. Please try again."


class TemplateProcess:
    """Renders a template's texts elsewhere. Used from one event loop or several; texts wait for each other."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self._setup = {"source": source, "special_tokens": special_tokens}
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = bool  # ends the process, also where nobody holds this object any more
        self._is_stopped = False
        self._thread = ThreadPoolExecutor(1, "chat-template", name_thread, ("chat-template",))
        weakref.finalize(self, self._thread.shutdown, wait=False)

    async def render(self, timeout: float, messages: list[dict[str, Any]], /, **options: Any) -> str:
        """Return what ChatTemplate.render returns, in `timeout` seconds.

        Raises:
            RequestError: the template refuses these messages, fails on them, or takes too long.
            DrainingError: `stop` was called.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._ask, timeout, messages, options)

    def start(self) -> None:
        """Start the process before the first text wants it."""
        self._thread.submit(self._running)

    def stop(self) -> None:
        """End the process, and a text that it is rendering; from now on, no text is rendered."""
        self._is_stopped = True
        if self._process is not None:
            self._process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._is_stopped:
            raise DrainingError(_STOPPED)
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._start()
        return self._process

    def _ask(self, timeout: float, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        try:
            line = json.dumps({"timeout": timeout, "messages": messages, "options": options}).encode()
        except RecursionError:
            raise RequestError("The messages or the template's variables are nested too deeply.", "messages") from None
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write(process.stdin, line)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise self._ended(process, timeout)
        text, message, param = json.loads(answer)
        if text is None:
            raise RequestError(message, param)
        return str(text)

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the working directory must not shadow our packages. A session of its own: ctrl-C is for us.
        command = [sys.executable, "-P", "-m", "server.chat.template_process", configured_format()]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=1 << 16
        )
        self._end = weakref.finalize(self, _end, process)
        assert process.stdin is not None
        _write(process.stdin, json.dumps(self._setup).encode())
        return process

    def _ended(self, process: subprocess.Popen[bytes], timeout: float) -> DeepseekServeError:
        status = process.wait()
        if self._is_stopped:
            return DrainingError(_STOPPED)
        reason = f"ended with status {status}"
        if status == -signal.SIGALRM:
            reason = f"took longer than {timeout:g} s (--chat-template-timeout)"
        logger.warning("the chat template %s", reason)
        return RequestError(f"The model's chat template {reason}.", "messages")


def _write(pipe: IO[bytes], line: bytes) -> None:
    pipe.write(line + b"\n")
    pipe.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # of what was not written, which is lost as it should be
                pipe.close()


def main() -> None:
    """Render the texts that standard input asks for, until it ends."""
    configure("prompts", "warning", "json" if sys.argv[1:] == ["json"] else "text")
    name_process("prompts")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limit_address_space(_MAX_MEMORY)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    template = ChatTemplate(**json.loads(requests.readline()))
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["timeout"])
        answer: tuple[str | None, str, str | None]
        try:
            answer = (template.render(request["messages"], **request["options"]), "", None)
        except RequestError as error:
            answer = (None, str(error), error.param)
        encoded = json.dumps(answer).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, encoded)


if __name__ == "__main__":
    main()

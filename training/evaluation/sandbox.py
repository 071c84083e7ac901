"""Runs Python programs that a model wrote, so that they can harm nothing: each in a confined process of its own.

jail.py confines the process from inside. This module gives it an empty folder and a token, waits, and kills it in the
end. A program passes if it runs to its end: only then does jail.py read the token and send it back, so a program that
exits early has not passed. A program that takes the token itself would: this guards the machine, not the score.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from training.evaluation.unavailable import UnavailableError

_JAIL = Path(__file__).with_name("jail.py")
_MAX_REPORT = 256  # bytes
_END_TIMEOUT = 1.0  # seconds from the last report to the end of the process
_START_TIMEOUT = 20.0  # seconds until a confined interpreter is ready, on a busy machine


class SandboxError(UnavailableError):
    """Programs cannot be confined on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Verdict:
    """Whether a program ran to its end, and if not, why: an exception's name, or what stopped it."""

    passed: bool
    reason: str = ""


def run(program: str, *, seconds: float = 5.0, memory: int = 512 << 20) -> Verdict:
    """Run a program; it gets `seconds` of time and `memory` bytes of address space, and no input.

    Raises:
        SandboxError: it cannot be confined here, and was not run.
    """
    token = secrets.token_hex(16).encode()
    command = [sys.executable, "-I", "-S", str(_JAIL), str(memory), str(math.ceil(seconds) + 1)]
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        Path(folder, "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
        process = subprocess.Popen(
            command, cwd=folder, env={}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(token)
            process.stdin.close()
            report = process.stdout.fileno()
            ready, _ = _read(report, b"\n", _START_TIMEOUT)
            if ready != b"ready\n":
                why = ready.decode(errors="replace").strip() or "the confined process does not answer"
                raise SandboxError(f"programs that a model wrote cannot be confined on this machine: {why}")
            answer, in_time = _read(report, b"", seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_END_TIMEOUT if in_time else 0)
        finally:
            process.kill()
            status = process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
    if answer == token:
        return Verdict(True)
    return Verdict(False, _reason(answer, status) if in_time else "out of time")


def _read(file: int, end: bytes, seconds: float) -> tuple[bytes, bool]:
    """Read up to a byte or the end of the file, and no more than a report may have; what came, and whether in time."""
    deadline, read = time.monotonic() + seconds, b""
    while len(read) < _MAX_REPORT:
        if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return read, False
        # Byte by byte up to `end`: what follows it belongs to the next report.
        if not (piece := os.read(file, 1 if end else _MAX_REPORT)):
            break
        read += piece
        if end and piece == end:
            break
    return read, True


def _reason(answer: bytes, status: int) -> str:
    if answer:
        return answer.decode(errors="replace")
    return f"ended by signal {-status}" if status < 0 else "ended early"

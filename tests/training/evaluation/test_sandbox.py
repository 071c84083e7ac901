"""Programs of a model: what is right passes, what is wrong does not, and what is hostile harms nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from training.evaluation import sandbox

FCNTL = {"x86_64": 72, "aarch64": 25}[os.uname().machine]  # the system call's number


def test_a_program_that_runs_to_its_end_passes() -> None:
    assert sandbox.run("import hashlib, math, collections, re\nassert math.gcd(4, 6) == 2").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("x = '\udc80'\nassert False", "UnicodeEncodeError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("import ctypes; ctypes.string_at(0)", "ended by signal 11"),
    ],
)
def test_what_does_not_reach_its_end_fails_and_says_why(program: str, reason: str) -> None:
    verdict = sandbox.run(program)
    assert (verdict.passed, verdict.reason) == (False, reason)


def test_endless_loops_are_killed_in_time() -> None:
    started = time.monotonic()
    assert sandbox.run("while True: pass", seconds=0.5).reason == "out of time"
    assert sandbox.run("import time; time.sleep(1000)", seconds=0.5).reason == "out of time"
    assert time.monotonic() - started < 10


def test_a_fork_bomb_starts_no_process() -> None:
    bomb = "import os\nwhile True:\n  try:\n    os.fork()\n  except OSError as error:\n    assert 0, error"
    before = {process.pid for process in psutil.process_iter()}
    verdict = sandbox.run(bomb)
    assert verdict.reason == "AssertionError"
    named = [process for process in psutil.process_iter(["cmdline"]) if process.pid not in before]
    assert not [process for process in named if "jail.py" in " ".join(process.info["cmdline"] or [])]


@pytest.mark.parametrize(
    "attempt",
    [
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import threading; threading.Thread(target=print).start()",
        "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
        "import socket; socket.socket()",
        "import os; os.unlink('program.py')",
        "import os; os.mkdir('folder')",
        "import os; os.chmod('program.py', 0)",
        "open('file', 'w')",
        "open('/tmp/file', 'w')",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "import os; os.listdir('/')",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))",
    ],
)
def test_nothing_outside_can_be_reached(attempt: str) -> None:
    verdict = sandbox.run(attempt)
    assert not verdict.passed
    assert verdict.reason in ("PermissionError", "RuntimeError", "ValueError", "BlockingIOError"), verdict


def test_no_signal_is_sent_by_way_of_a_file_that_becomes_readable() -> None:
    """fcntl can name the process, the signal and the moment: os.kill is not the only way."""
    attack = """
import ctypes, fcntl, os, time
call = ctypes.CDLL(None).syscall
for upper in (0, 1 << 32):  # the kernel looks at the lower half of a command alone
    call(ctypes.c_long({number}), ctypes.c_long(3), ctypes.c_long(upper | fcntl.F_SETOWN), ctypes.c_long({pid}))
    call(ctypes.c_long({number}), ctypes.c_long(3), ctypes.c_long(upper | 10), ctypes.c_long(9))
    call(ctypes.c_long({number}), ctypes.c_long(3), ctypes.c_long(upper | fcntl.F_SETFL), ctypes.c_long(os.O_ASYNC | 1))
for _ in range(3):
    os.write(3, b"x")
    time.sleep(0.1)
fcntl.fcntl(3, fcntl.F_SETOWN, {pid})
"""
    with subprocess.Popen(["sleep", "100"]) as bystander:
        try:
            verdict = sandbox.run(attack.format(pid=bystander.pid, number=FCNTL))
            assert bystander.poll() is None
        finally:
            bystander.kill()
    assert verdict.reason.endswith("PermissionError")


def test_what_programs_ask_of_descriptors_is_allowed() -> None:
    assert sandbox.run("import fcntl\nfcntl.fcntl(fcntl.fcntl(0, fcntl.F_DUPFD, 5), fcntl.F_GETFL)").passed


def test_files_stay_as_they_are(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    attacks = [f"open({str(precious)!r}, 'w')", f"import os; os.truncate({str(precious)!r}, 0)",
               f"import os; os.rename({str(precious)!r}, 'x')", f"open({str(precious)!r}).read()",
               f"import os; os.symlink({str(precious)!r}, 'x')"]  # fmt: skip
    assert not any(sandbox.run(attack).passed for attack in attacks)
    assert precious.read_text() == "mine"
    assert [*tmp_path.iterdir()] == [precious]


def test_no_connection_reaches_a_listener_here() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        assert not sandbox.run(f"import socket; socket.create_connection({listener.getsockname()!r})").passed
        with pytest.raises(TimeoutError):
            listener.accept()


def test_memory_is_bounded() -> None:
    assert sandbox.run("x = bytearray(1 << 30)").reason == "MemoryError"
    assert sandbox.run("x = []\nwhile True: x.append(bytes(1 << 20))").reason == "MemoryError"


def test_output_goes_nowhere_and_costs_nothing() -> None:
    flood = "import os\nfor _ in range(2000): os.write(1, b'x' * 65536)\nprint('y' * 10**6)"
    assert sandbox.run(flood).passed
    into_every_file = """
import os
for file in range(3, 32):
    try:
        os.write(file, b'x' * 10**6)
    except OSError:
        pass
"""
    assert sandbox.run(into_every_file) == sandbox.Verdict(False, "x" * 256)  # of a million bytes


def test_no_environment_and_no_open_file_is_handed_down() -> None:
    os.environ["SANDBOX_TEST_SECRET"] = "mine"
    try:
        assert sandbox.run("import os; assert 'SANDBOX_TEST_SECRET' not in os.environ").passed
    finally:
        del os.environ["SANDBOX_TEST_SECRET"]


def test_a_machine_that_cannot_confine_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jail = tmp_path / "jail.py"
    jail.write_text("print('no Landlock here')")
    monkeypatch.setattr(sandbox, "_JAIL", jail)
    with pytest.raises(sandbox.SandboxError, match="no Landlock here"):
        sandbox.run("")

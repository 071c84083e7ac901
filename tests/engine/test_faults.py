"""Planted faults happen where and when their lines say, and nothing of them is there otherwise."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from engine import faults
from engine.errors import ConfigError
from engine.faults import Fault, plant

if TYPE_CHECKING:
    from pathlib import Path


class Line:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def receive(self, *, wait: bool) -> None:
        raise AssertionError

    def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(
    "line",
    ["forward", "forward raise", "forward raise often", "nowhere raise #1", "forward vanish #1", "forward nan #1",
     "forward raise #x", "a b c d", "forward slow=long 1"],
)  # fmt: skip
def test_what_is_no_fault_is_refused_with_what_is_valid(tmp_path: Path, line: str) -> None:
    (tmp_path / "faults").write_text(f"send slow 0.5\n{line}\n")
    with pytest.raises(
        ConfigError, match=r"(?s)POINT KIND WHEN: load, allocate, .*raise, hang, oom, slow, nan"
    ) as error:
        plant(tmp_path / "faults", Line())
    assert repr(line) in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        plant(tmp_path / "faults", Line())


@pytest.mark.parametrize(("kind", "error"), [("raise", RuntimeError), ("oom", MemoryError)])
def test_a_fault_happens_at_its_call(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    (tmp_path / "faults").write_text(f"send {kind} #2\n")
    line = Line()
    plant(tmp_path / "faults", line)
    line.send(1)
    with pytest.raises(error, match="planted"):
        line.send(2)
    line.send(3)
    assert line.sent == [1, 3]


def test_a_fault_happens_with_its_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault.parse("forward slow 0.25")
    for drawn, due in ((0.0, True), (0.24, True), (0.25, False), (0.99, False)):
        monkeypatch.setattr(faults.random, "random", lambda drawn=drawn: drawn)
        assert fault.is_due(1) == due


@pytest.mark.parametrize(("kind", "seconds"), [("slow", 0.5), ("slow=0.005", 0.005)])
def test_slow_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seconds: float) -> None:
    waits: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", waits.append)
    (tmp_path / "faults").write_text(f"send {kind} 1\n")
    line = Line()
    plant(tmp_path / "faults", line)
    line.send(1)
    assert (waits, line.sent) == ([seconds], [1])


def test_without_the_variable_nothing_is_imported() -> None:
    code = "import sys, engine.process, engine.build, engine.engine; assert 'engine.faults' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

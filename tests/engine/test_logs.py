"""Lines of a log: nothing that comes from outside can forge one, steer a terminal, or fill a disk."""

from __future__ import annotations

import json
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from engine import logs
from engine.logs import JsonFormatter, RepeatFilter, TextFormatter, configure, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

EVIL = "x\n2026-11-26 18:00:00,000 ERROR server.serve: forged\x1b]0;owned\x07\r\x9b31m\u202e\u2028\ud800"


def line(form: str, message: str, *args: Any, **extra: Any) -> str:
    """What a handler would write."""
    record = logging.getLogger("server.x").makeRecord(
        "server.x", logging.ERROR, "f", 1, message, args, extra.pop("exc_info", None), extra=extra
    )
    return (TextFormatter() if form == "text" else JsonFormatter("api")).format(record)


def raised(message: str) -> Any:
    try:
        raise ValueError(message)
    except ValueError:
        return sys.exc_info()


@pytest.fixture
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The process' own handlers and hooks are there again afterwards."""
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda form: line(form, "the model '%s' is gone", EVIL), id="argument"),
        pytest.param(lambda form: line(form, f"the model '{EVIL}' is gone"), id="message"),
        pytest.param(lambda form: line(form, "%s", ValueError(EVIL)), id="error as an argument"),
        pytest.param(lambda form: line(form, "failed", exc_info=raised(EVIL)), id="traceback"),
    ],
)
def test_no_text_can_look_like_another_line_or_steer_a_terminal(written: Any) -> None:
    text = written("text")
    first, *more = text.split("\n")
    assert " ERROR server.x: " in first
    assert all(continued.startswith("  ") for continued in more)
    assert all(character.isprintable() for character in text.replace("\n", ""))
    text.encode()
    of_json = written("json")
    assert of_json.isascii()
    assert of_json.isprintable()
    assert json.loads(of_json)["logger"] == "server.x"


def test_an_argument_stays_on_its_line() -> None:
    assert line("text", "model %s, %d", "a\nb\tc", 3).endswith(r"ERROR server.x: model a\nb\tc, 3")
    assert printable('a"\n\x1b') == 'a"\\n\\x1b'


def test_a_line_is_bounded() -> None:
    for form in ("text", "json"):
        assert len(line(form, "%s", "\x1b" * 10**6)) < 100_000
        assert len(line(form, "x", exc_info=raised("y" * 10**6))) < 100_000


def test_json_has_ids_fields_and_the_error() -> None:
    found = json.loads(line("json", "a %s", "b", request_id="r-1", trace_id="", exc_info=raised("no")))
    assert found["message"] == "a b"
    assert (found["level"], found["process"], found["request_id"]) == ("error", "api", "r-1")
    assert found["time"].endswith("Z")
    assert "trace_id" not in found
    assert (found["error"]["type"], found["error"]["message"]) == ("ValueError", "no")
    assert "raise ValueError(message)" in found["error"]["stack"]
    assert json.loads(line("json", "a", fields={"message": "b", "status": 200}))["message"] == "b"


def test_text_names_the_request_once() -> None:
    assert line("text", "failed", request_id="r-1").endswith(": [r-1] failed")
    assert line("text", "r-1 failed", request_id="r-1", names_request=True).endswith(": r-1 failed")


def test_repeated_lines_are_counted_instead_of_written(monkeypatch: pytest.MonkeyPatch) -> None:
    now, repeated = 0.0, RepeatFilter()
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)

    def passes(name: str = "a", level: int = logging.WARNING, number: int = 1) -> logging.LogRecord | None:
        record = logging.LogRecord(name, level, "f", number, "m", (), None)
        return record if repeated.filter(record) else None

    assert sum(passes() is not None for _ in range(100)) == 20
    assert passes(number=2) is not None
    assert all(passes(level=logging.INFO) for _ in range(100))
    now = 1.0
    record = passes()
    assert record is not None
    assert TextFormatter().format(record).endswith("m (80 more lines like this one were not logged)")
    assert sum(passes("opentelemetry.sdk") is not None for _ in range(100)) == 1
    now = 60.9
    assert passes("opentelemetry.sdk") is None
    now = 61.0
    assert passes("opentelemetry.sdk") is not None
    for number in range(5000):
        passes(number=number)
    assert len(repeated._places) <= 1000


@pytest.mark.usefixtures("configured")
def test_in_json_every_line_is_an_object_also_what_nobody_caught(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers[:] = []  # pytest's, of this phase
    configure("engine", "info", "json")
    logging.getLogger("uvicorn.error").warning("shutting down")
    logging.getLogger("quiet").debug("not this")
    logging.getLogger("py.warnings").warning("%s", "a\nwarning")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    sys.excepthook(*raised("the end"))
    found = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert [one["logger"] for one in found] == ["uvicorn.error", "py.warnings", "uncaught", "uncaught"]
    assert [one["error"]["type"] for one in found[2:]] == ["ZeroDivisionError", "ValueError"]
    assert {one["process"] for one in found} == {"engine"}
    assert logs.configured_format() == "json"

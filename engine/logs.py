"""How log lines look, in every process of the server: a line of text, or an object of JSON a line.

Nothing that a message carries can look like another line or steer a terminal: control characters are escaped, and what
follows a line break inside a message is indented. Lines from one place that repeat are limited. Who is asked, and for
which request a line was written, are added by the server (server.http.request_record).
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from types import TracebackType

LogFormat = Literal["text", "json"]

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BREAKS = str.maketrans({"\n": r"\n", "\t": r"\t"})
_MAX_MESSAGE = 10_000  # characters
_MAX_STACK = 20_000  # likewise, of a traceback
_MAX_REPEATED = 20  # warnings and errors of one place in one period
_PERIOD = 1.0  # seconds
_PERIODS = {"opentelemetry": 60.0}  # by package: a collector that is away is told of all the time
_MAX_PLACES = 1000  # that are remembered
_encode = json.JSONEncoder(default=str).encode
_FIELDS = ("request_id", "trace_id", "span_id")  # of a record, where it has them


def printable(text: str) -> str:
    """Return a text with control characters, line breaks included, as escapes: it may stand inside a line."""
    return text if text.isprintable() else _escaped(text).translate(_BREAKS)


def configure(process: str, level: str, form: LogFormat, *filters: logging.Filter) -> None:
    """Send all loggers' lines, Python's warnings included, to standard error; `process` is what JSON calls this one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if form == "json" else TextFormatter())
    for one in (RepeatFilter(), *filters):
        handler.addFilter(one)
    logging.basicConfig(level=level.upper(), handlers=[handler])  # nothing, where whoever imports us has done so
    logging.captureWarnings(capture=True)
    if form == "json":  # what nobody caught is a line too
        sys.excepthook = _uncaught
        threading.excepthook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def configured_format() -> LogFormat:
    """Return the format that `configure` was called with last, for a process that this one starts."""
    return "json" if any(isinstance(h.formatter, JsonFormatter) for h in logging.getLogger().handlers) else "text"


class TextFormatter(logging.Formatter):
    """Time, level, logger and message. Only the first line of a record begins at the left."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging."""
        message = _message(record)
        if (request_id := getattr(record, "request_id", None)) and not hasattr(record, "names_request"):
            message = f"[{request_id}] {message}"
        if record.exc_info and record.exc_info[0]:
            message = f"{message}\n{_stack(record.exc_info)}"
        if "\n" in message:
            first, *more = message.split("\n")
            message = "\n".join([first, *(line if line.startswith("  ") else f"  {line}" for line in more)])
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {message}"


class JsonFormatter(logging.Formatter):
    """One object a line, in ASCII. A record's `fields` are added, and replace what has the same name."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging."""
        when = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "pid": record.process,
            "thread": record.threadName,
            "message": _message(record),
        }
        line |= {name: value for name in _FIELDS if (value := getattr(record, name, None))}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            kind, error, _ = record.exc_info
            line["error"] = {
                "type": kind.__qualname__,
                "message": str(error)[:_MAX_MESSAGE],
                "stack": _stack(record.exc_info),
            }
        return _encode(line)


class RepeatFilter(logging.Filter):
    """Lets so many warnings and errors of one line of code pass in a second; the next that passes tells of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, int], tuple[float, int]] = {}  # (logger, line) -> (start of the period, lines)

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging for each line."""
        if record.levelno < logging.WARNING:
            return True
        now, place = time.monotonic(), (record.name, record.lineno)
        package = record.name.partition(".")[0]
        most = 1 if package in _PERIODS else _MAX_REPEATED
        begun, count = self._places.pop(place, (now, 0))
        if now - begun >= _PERIODS.get(package, _PERIOD):
            record.num_dropped = max(0, count - most)
            begun, count = now, 0
        self._places[place] = (begun, count + 1)
        if len(self._places) > _MAX_PLACES:
            self._places.pop(next(iter(self._places)), None)
        return count < most


def _message(record: logging.LogRecord) -> str:
    """A record's message, bounded and without control characters; line breaks only where they are not an argument's."""
    text = str(record.msg)
    if record.args:
        args = record.args
        if isinstance(args, tuple):
            args = tuple(printable(arg) if isinstance(arg, str) else arg for arg in args)
        text = text % args
    if (num_dropped := getattr(record, "num_dropped", 0)) > 0:
        text += f" ({num_dropped} more lines like this one were not logged)"
    if len(text) > _MAX_MESSAGE:
        text = f"{text[:_MAX_MESSAGE]}... ({len(text)} characters)"
    return _escaped(text)


def _stack(exc_info: tuple[Any, Any, TracebackType | None] | tuple[None, None, None]) -> str:
    text = "".join(traceback.format_exception(*exc_info)).rstrip("\n")
    return _escaped(text if len(text) <= _MAX_STACK else f"...{text[-_MAX_STACK:]}")


def _escaped(text: str) -> str:
    if text.isprintable():  # nearly always, and a tenth of the time that a search takes
        return text
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logging.getLogger("uncaught").critical("%s", kind.__qualname__, exc_info=(kind, error or kind(), trace))

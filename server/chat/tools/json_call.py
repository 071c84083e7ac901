"""Reads {"name": NAME, "arguments": {...}}: a call as one JSON object, as most families write it.

The name is given out once it is there, and the arguments as they come. An object whose name comes after its arguments
is read when it is whole.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from server.chat.pieces import ToolCallArguments
from server.chat.tools.json_text import JsonScanner, is_json_object, stream_arguments
from server.chat.tools.source import NotACallError, Source, Steps

if TYPE_CHECKING:
    from server.chat.tools.format import Calls

_ARGUMENTS = ("arguments", "parameters")
_OTHER = r'"(?!name"|arguments"|parameters")[^"\\]{0,64}"\s*:\s*"[^"\\]{0,256}"'  # "type": "function", "id": "..."
_NAME = re.compile(rf'\{{\s*(?:{_OTHER}\s*,\s*)*"name"\s*:\s*"([^"\\]{{0,256}})"')
_FIRST_KEY = re.compile(r'\{\s*"([^"\\]*)"')
_KEYS = ("name", "type", "id", "function", *_ARGUMENTS)
_VALUE = re.compile(rf'\s*(?:,\s*{_OTHER}\s*)*,\s*"(?:arguments|parameters)"\s*:\s*(?=(\{{)?)\S')


def read_json_call(source: Source, calls: Calls) -> Steps[None]:
    """Read one object at the cursor.

    Raises:
        NotACallError: it is no call of a function that there is.
    """
    scanner, seen = JsonScanner(), 0
    while True:
        rest = source.rest
        if name := _NAME.match(rest):
            break
        first = _FIRST_KEY.match(rest)
        if first is not None and first[1] not in _KEYS:
            raise NotACallError
        seen += scanner.feed(rest[seen:])
        if scanner.ended:
            return (yield from _whole(source, calls, seen))
        if scanner.broken or source.final:
            raise NotACallError
        yield None
    source.take(name.end())
    index = yield from calls.begin(source, name[1])
    yield from _arguments(source, index)
    source.commit()


def _whole(source: Source, calls: Calls, length: int) -> Steps[None]:
    """Read an object that is all there."""
    try:
        call: Any = json.loads(source.take(length))
    except (ValueError, RecursionError):
        raise NotACallError from None
    call = call.get("function", call) if isinstance(call.get("function", call), dict) else call
    if not isinstance(call.get("name"), str):
        raise NotACallError
    arguments = next((call[key] for key in _ARGUMENTS if key in call), None)
    index = yield from calls.begin(source, call["name"])
    yield ToolCallArguments(index, _as_text(arguments))


def _as_text(arguments: Any) -> str:
    """Return arguments as JSON: some models write an object into a string, and some none at all."""
    if isinstance(arguments, str) and is_json_object(arguments):
        return arguments
    return json.dumps({} if arguments is None else arguments, ensure_ascii=False)


def _arguments(source: Source, index: int) -> Steps[None]:
    """Read what follows the name: the arguments, then all up to the object's end."""
    scanner, seen = JsonScanner(depth=1), 0
    while True:
        rest = source.rest
        value = _VALUE.match(rest)
        if value is not None and value[1]:
            source.take(value.end() - 1)
            yield from stream_arguments(source, index)
            return (yield from _close(source))
        seen += scanner.feed(rest[seen:])
        if scanner.ended or scanner.broken or source.final:
            break
        yield None
    members = source.take(seen)
    try:
        call = json.loads('{"name": ""' + members)
    except (ValueError, RecursionError):  # as the model wrote it: the client sees that it is no JSON
        yield ToolCallArguments(index, members.lstrip(", ") or "{}")
    else:
        yield ToolCallArguments(index, _as_text(next((call[key] for key in _ARGUMENTS if key in call), None)))


def _close(source: Source) -> Steps[None]:
    """Move behind the object's closing bracket, or to what cannot be in it."""
    scanner = JsonScanner(depth=1)
    while True:
        source.take(scanner.feed(source.rest))
        if scanner.ended or scanner.broken or source.final:
            return
        yield None

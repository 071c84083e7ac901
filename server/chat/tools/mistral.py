"""Mistral: [TOOL_CALLS] and a list of {"name", "arguments"}; newer ones write [TOOL_CALLS]NAME[ARGS]{...} for each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from server.chat.tools.format import Calls, ToolFormat
from server.chat.tools.json_call import read_json_call
from server.chat.tools.json_text import stream_arguments
from server.chat.tools.source import WHITE_SPACE, NotACallError, Source, Steps, expect, skip, until

if TYPE_CHECKING:
    from server.chat.tools.lark import Lark

_CALLS, _ARGS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class MistralFormat(ToolFormat):
    """Ids are nine alphanumerics: the templates refuse others."""

    name: ClassVar[str] = "mistral"
    openers = (_CALLS,)
    markers = (_CALLS, _ARGS, _ID)
    id_length = 9

    def __init__(self, *, named: bool) -> None:
        """`named`: calls are written as NAME[ARGS]{...}."""
        self.one_call_a_block = named

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        yield from expect(source, _CALLS)
        yield from skip(source)
        if source.rest.startswith(("[", "{")):
            return (yield from self._list(source, calls))
        name, marker = yield from until(source, _ARGS, _ID, limit=256)
        if marker == _ID:
            yield from until(source, _ARGS, limit=64)
        yield from skip(source)
        if not source.rest.startswith("{"):
            raise NotACallError
        index = yield from calls.begin(source, name.strip())
        yield from stream_arguments(source, index)
        return None

    def _list(self, source: Source, calls: Calls) -> Steps[None]:
        before = calls.count
        while True:
            yield from skip(source, WHITE_SPACE + "[],")
            if not source.rest.startswith("{"):
                break
            yield from read_json_call(source, calls)
        if calls.count == before:
            raise NotACallError

    def instructions(self, functions: list[dict[str, Any]]) -> str:
        return f"[AVAILABLE_TOOLS]{json.dumps(functions, ensure_ascii=False)}[/AVAILABLE_TOOLS]"

    def block(self, lark: Lark, schemas: dict[str, dict[str, Any]], most: int) -> str:
        if not self.one_call_a_block:
            return f'"[" {lark.several(lark.json_calls(schemas), ", ", most)} "]"'
        named = [f'"{name}" {lark.marker(_ARGS)} {lark.json(schema)}' for name, schema in schemas.items()]
        return lark.rule(" | ".join(named))

"""Hermes: <tool_call> {"name": ..., "arguments": {...}} </tool_call>. Qwen 2.5 and 3, SmolLM2 and many others.

It is also what models are told whose chat template knows no tools.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from server.chat.tools.format import Calls, ToolFormat, one_a_line
from server.chat.tools.json_call import read_json_call
from server.chat.tools.source import WHITE_SPACE, NotACallError, Source, Steps, accept, expect, skip

if TYPE_CHECKING:
    from server.chat.tools.lark import Lark

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesFormat(ToolFormat):
    """One tag for each call; a list of calls in one tag is read too."""

    name: ClassVar[str] = "hermes"
    openers = (_OPEN,)
    markers = (_OPEN, _CLOSE)
    call_end = _CLOSE
    one_call_a_block = True
    separator: ClassVar[str] = "\n"

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        yield from expect(source, _OPEN)
        before = calls.count
        while True:
            yield from skip(source, WHITE_SPACE + "[],")
            if source.rest.startswith("{"):
                yield from read_json_call(source, calls)
            elif (yield from accept(source, _CLOSE)) or calls.count > before:
                if calls.count == before:
                    raise NotACallError
                return
            else:
                raise NotACallError

    def instructions(self, functions: list[dict[str, Any]]) -> str:
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{one_a_line(functions)}\n</tools>\n\n"
            "For each function call, return a json object with function name and arguments within "
            f"{_OPEN}{_CLOSE} XML tags:\n{_OPEN}\n"
            f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{_CLOSE}'
        )

    def block(self, lark: Lark, schemas: dict[str, dict[str, Any]], most: int) -> str:  # noqa: ARG002
        return f'"\\n" {lark.json_calls(schemas)} "\\n" {lark.marker(_CLOSE)}'


def call_as_text(name: str, arguments: Any) -> str:
    """Return a call as a model writes it; `arguments` are JSON text or a value."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{_OPEN}\n{{"name": {json.dumps(name)}, "arguments": {text or "{}"}}}\n{_CLOSE}'


def result_as_text(content: str) -> str:
    """Return a function's result as these models read it, in a message of the user."""
    return f"<tool_response>\n{content}\n</tool_response>"

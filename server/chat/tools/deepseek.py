"""DeepSeek V2.5, V3, R1 and V3.1: calls between markers that are single tokens of the vocabulary.

V2.5, V3 and R1 write a type, the name, and the arguments in a fenced block; V3.1 only the name and the arguments.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from server.chat.tools.format import Calls, ToolFormat, one_a_line
from server.chat.tools.json_text import stream_arguments
from server.chat.tools.source import WHITE_SPACE, NotACallError, Source, Steps, accept, expect, skip, until

if TYPE_CHECKING:
    from server.chat.tools.lark import Lark

_CALLS, _END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEP, _END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


class DeepseekV31Format(ToolFormat):
    """NAME, a separator, the arguments."""

    name: ClassVar[str] = "deepseek-v3.1"
    openers = (_CALLS,)
    markers = (_CALLS, _END_CALLS, _CALL, _SEP, _END_CALL)
    call_end = _END_CALL
    _between_calls, _before_arguments, _after_arguments = "", "", ""

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        yield from expect(source, _CALLS)
        before = calls.count
        while True:
            yield from skip(source)
            if (yield from accept(source, _CALL)) is None:
                break
            name = yield from self._name(source)
            yield from skip(source)
            if not source.rest.startswith("{"):
                raise NotACallError
            index = yield from calls.begin(source, name.strip())
            yield from stream_arguments(source, index)
            yield from skip(source, WHITE_SPACE + "`")
            yield from accept(source, _END_CALL)
            source.commit()
        if calls.count == before:
            raise NotACallError
        yield from accept(source, _END_CALLS)

    def _name(self, source: Source) -> Steps[str]:
        name, _ = yield from until(source, _SEP, limit=256)
        return name

    def instructions(self, functions: list[dict[str, Any]]) -> str:
        described = "".join(
            f"\n### {function['name']}\nDescription: {function.get('description', '')}\n\n"
            f"Parameters: {json.dumps(function['parameters'], ensure_ascii=False)}\n"
            for function in functions
        )
        return (
            f"## Tools\nYou have access to the following tools:\n{described}\n"
            "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
            f"{_CALLS}{_CALL}tool_call_name{_SEP}tool_call_arguments{_END_CALL}{{additional_tool_calls}}{_END_CALLS}\n\n"
            "Where:\n\n- `tool_call_name` must be an exact match to one of the available tools\n"
            "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
            "- For multiple tool calls, chain them directly without separators or spaces\n"
        )

    def block(self, lark: Lark, schemas: dict[str, dict[str, Any]], most: int) -> str:
        after_name, after = lark.text(self._before_arguments), lark.text(self._after_arguments)
        called = [f"{self._lark_name(lark, name)} {after_name} {lark.json(schemas[name])}" for name in schemas]
        call = lark.rule(f"{lark.marker(_CALL)} ({' | '.join(called)}) {after} {lark.marker(_END_CALL)}")
        calls = lark.several(call, self._between_calls, most)
        return f"{calls} {lark.marker(_END_CALLS)}"

    def _lark_name(self, lark: Lark, name: str) -> str:
        return f"{lark.text(name)} {lark.marker(_SEP)}"


class DeepseekV3Format(DeepseekV31Format):
    """The type "function", a separator, NAME, and the arguments in a fenced block."""

    name: ClassVar[str] = "deepseek-v3"
    _between_calls, _before_arguments, _after_arguments = "\n", "\n```json\n", "\n```"

    def _name(self, source: Source) -> Steps[str]:
        yield from until(source, _SEP, limit=32)
        name, _ = yield from until(source, "\n", limit=256)
        yield from skip(source)
        yield from accept(source, "```json")
        return name

    def instructions(self, functions: list[dict[str, Any]]) -> str:
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{one_a_line(functions)}\n</tools>\n\n"
            f"For function call returns, you should first print {_CALLS}\n"
            "For each function call, you should return object like:\n"
            f"{_CALL}function{_SEP}<function_name>\n```json\n<function_arguments_in_json_format>\n```{_END_CALL}\n"
            f"At the end of function call returns, you should print {_END_CALLS}"
        )

    def _lark_name(self, lark: Lark, name: str) -> str:
        return f'"function" {lark.marker(_SEP)} {lark.text(name)}'

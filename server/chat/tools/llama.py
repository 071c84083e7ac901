"""Llama 3.1 to 3.3: the whole answer is {"name": ..., "parameters": {...}}, with <|python_tag|> before it or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from server.chat.tools.format import Calls, ToolFormat, one_a_line
from server.chat.tools.json_call import read_json_call
from server.chat.tools.source import NotACallError, Source, Steps, accept, skip

if TYPE_CHECKING:
    from server.chat.tools.lark import Lark

_TAG = "<|python_tag|>"


class LlamaFormat(ToolFormat):
    """The answer is a call or text, not both; semicolons separate calls."""

    name: ClassVar[str] = "llama3"
    openers = (_TAG, "{")
    markers = (_TAG,)
    only_at_start = True
    opener = ""

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        yield from accept(source, _TAG)
        while True:
            yield from skip(source)
            if not source.rest.startswith("{"):
                raise NotACallError
            yield from read_json_call(source, calls)
            source.commit()
            yield from skip(source)
            if (yield from accept(source, ";")) is None:
                return

    def instructions(self, functions: list[dict[str, Any]]) -> str:
        return (
            "You have access to the following functions. To call a function, please respond with JSON for a function "
            'call. Respond in the format {"name": function name, "parameters": dictionary of argument name and its '
            f"value}}. Do not use variables.\n\n{one_a_line(functions)}"
        )

    def block(self, lark: Lark, schemas: dict[str, dict[str, Any]], most: int) -> str:
        return lark.several(lark.json_calls(schemas, arguments="parameters"), "; ", most)

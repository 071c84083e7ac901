"""DSML, which DeepSeek V3.2 and V4 write: <｜DSML｜invoke name="f"> and a tag for each parameter.

string="true" marks text as it is, string="false" JSON. The arguments become a JSON object: strings as they come, other
values when they are whole, so that what they make is JSON whatever the model wrote.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, ClassVar

from engine.errors import RequestError
from server.chat.pieces import ToolCallArguments
from server.chat.tools.format import Calls, ToolFormat, one_a_line
from server.chat.tools.source import NotACallError, Source, Steps, accept, expect, skip, until
from server.text.choice_text import stop_prefix_length

if TYPE_CHECKING:
    from server.chat.tools.lark import Lark

_DSML = "｜DSML｜"
_INVOKE, _END_INVOKE = f"<{_DSML}invoke", f"</{_DSML}invoke>"
_PARAMETER, _END_PARAMETER = f"<{_DSML}parameter", f"</{_DSML}parameter>"
_MAX_ANY = 64  # parameters of a call whose function lists none
_NAME = re.compile(r'\s*name="([^"]*)"\s*')
_NAME_AND_KIND = re.compile(r'\s*name="([^"]*)"\s+string="(true|false)"\s*')


class DsmlFormat(ToolFormat):
    """The blocks of calls are called function_calls by V3.2, and tool_calls by V4."""

    name: ClassVar[str] = "deepseek-v3.2"
    openers = (f"<{_DSML}function_calls>", f"<{_DSML}tool_calls>")
    markers = (_DSML,)
    call_end = _END_INVOKE

    def __init__(self, block: str = "function_calls") -> None:
        """`block`: how the model calls the blocks; either is read."""
        self._block = block

    @property
    def opener(self) -> str:
        return f"<{_DSML}{self._block}>"

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        opener = yield from expect(source, *self.openers)
        before = calls.count
        while True:
            yield from skip(source)
            if (yield from accept(source, _INVOKE)) is None:
                break
            attributes, _ = yield from until(source, ">", limit=256)
            name = _NAME.fullmatch(attributes)
            if name is None:
                raise NotACallError
            index = yield from calls.begin(source, name[1])
            yield from self._arguments(source, index)
            source.commit()
        if calls.count == before:
            raise NotACallError
        yield from accept(source, "</" + opener[1:])

    def _arguments(self, source: Source, index: int) -> Steps[None]:
        text = "{"
        while True:
            yield from skip(source)
            if (yield from accept(source, _PARAMETER)) is None:
                break
            try:
                attributes, _ = yield from until(source, ">", limit=1024)
            except NotACallError:
                break
            if (parameter := _NAME_AND_KIND.fullmatch(attributes)) is None:
                break
            yield ToolCallArguments(index, text + json.dumps(parameter[1], ensure_ascii=False) + ": ")
            if not (yield from (_string if parameter[2] == "true" else _value)(source, index)):
                return
            text = ", "
        if (yield from accept(source, _END_INVOKE)):  # else the object stays open: the call was cut off, or is broken
            yield ToolCallArguments(index, "{}" if text == "{" else "}")

    def instructions(self, functions: list[dict[str, Any]]) -> str:
        block = f"{_DSML}{self._block}"
        return (
            "## Tools\nYou have access to a set of tools you can use to answer the user's question.\n"
            f'You can invoke functions by writing a "<{block}>" block like the following as part of your reply:\n'
            f'<{block}>\n{_INVOKE} name="$FUNCTION_NAME">\n'
            f'{_PARAMETER} name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{_END_PARAMETER}\n...\n'
            f"{_END_INVOKE}\n</{block}>\n"
            'The "string" attribute is "true" for strings, which are written as they are, and "false" for other '
            "types, which are written as JSON.\nHere are the functions available in JSONSchema format:\n"
            f"<functions>\n{one_a_line(functions)}\n</functions>"
        )

    def block(self, lark: Lark, schemas: dict[str, dict[str, Any]], most: int) -> str:
        separator = "\n"
        call = lark.rule(" | ".join(_lark_call(lark, name, schema) for name, schema in schemas.items()))
        return f'"\\n" {lark.several(call, separator, most)} "\\n" {lark.marker(f"</{_DSML}{self._block}>")}'


def _string(source: Source, index: int) -> Steps[bool]:
    """Give out text up to the end of the parameter as a JSON string, as it comes; False if there is no end."""
    yield ToolCallArguments(index, '"')
    while True:
        rest = source.rest
        end = rest.find(_END_PARAMETER)
        length = end if end >= 0 else len(rest) - stop_prefix_length(rest, (_END_PARAMETER,))
        if text := source.take(length):
            yield ToolCallArguments(index, json.dumps(text, ensure_ascii=False)[1:-1])
        if end >= 0:
            break
        if source.final:
            return False
        source.commit()
        yield None
    source.take(len(_END_PARAMETER))
    yield ToolCallArguments(index, '"')
    return True


def _value(source: Source, index: int) -> Steps[bool]:
    """Give out a value that is JSON, once it is whole (as a string, if it is no JSON); False if there is no end."""
    while (end := source.rest.find(_END_PARAMETER)) < 0:
        if source.final:
            return False
        yield None
    text = source.take(end)
    source.take(len(_END_PARAMETER))
    yield ToolCallArguments(index, text.strip() if _is_json(text) else json.dumps(text, ensure_ascii=False))
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    """Refuse NaN and the infinities, which Python reads and JSON lacks."""
    raise ValueError(name)


def _lark_call(lark: Lark, name: str, schema: dict[str, Any]) -> str:
    """Return one call: the function's parameters in their order, those that are not required left out or not."""
    opened, closed = lark.marker(f'{_INVOKE} name="{name}">\n'), lark.marker(_END_INVOKE)
    if "properties" not in schema:
        return f"{opened} {lark.rule(_any_parameter(lark))}{{0,{_MAX_ANY}}} {closed}"
    required = schema.get("required", [])
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parts = [opened]
    for key, value in schema["properties"].items():
        if set(key) & set('"<>\n'):
            raise RequestError(f"the model's format of calls has no way to write the property {key!r}")
        parameter = lark.rule(_lark_parameter(lark, key, value, shared))
        parts.append(parameter if isinstance(required, list) and key in required else f"{parameter}?")
    return " ".join((*parts, closed))


def _any_parameter(lark: Lark) -> str:
    name = rf"{lark.marker(f'{_PARAMETER} name=')} /\"[^\"<>\n]{{1,64}}\" string=/"
    value = f"{lark.json(True)} {lark.marker(f'{_END_PARAMETER}')}"
    return rf'{name} ("\"true\">" {lark.until(_END_PARAMETER)} | "\"false\">" {value}) "\n"'


def _lark_parameter(lark: Lark, key: str, schema: Any, shared: dict[str, Any]) -> str:
    as_text, as_json = (lark.marker(f'{_PARAMETER} name="{key}" string="{kind}">') for kind in ("true", "false"))
    end = lark.marker(f"{_END_PARAMETER}\n")
    if isinstance(schema, dict) and schema.get("type") == "string":
        if isinstance(schema.get("enum"), list):
            texts = " | ".join(lark.text(text) for text in schema["enum"] if isinstance(text, str))
            return f"{as_text} ({texts}) {end}"
        if not schema.keys() - {"type", "description", "title", "default", "examples"}:
            return f'{as_text} {lark.until(_END_PARAMETER)} "\\n"'
    return f"{as_json} {lark.json({**schema, **shared} if isinstance(schema, dict) else schema)} {end}"

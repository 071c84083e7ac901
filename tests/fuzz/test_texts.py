"""Chat templates, tool calls and grammars made up of their own pieces: read, or refused with one clear error."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ModelError, RequestError
from server.chat.chat_template import ChatTemplate
from server.chat.pieces import ChatMessage
from server.chat.tools.format import Calls, ToolParser
from server.chat.tools.formats import FORMATS
from server.grammar import lark
from tests.fuzz.values import FUZZ, values

if TYPE_CHECKING:
    from server.chat.tools.format import ToolFormat

PIECES = [
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if m.role == 'user' %}",
    "{% else %}", "{% endif %}", "{{ raise_exception('no') }}", "{{ messages[0].content.split('a')[9] }}",
    "{{ 1 / 0 }}", "{{ x.__class__ }}", "{% set ns = namespace(a=1) %}", "{% set ns.a = ns.a + 1 %}", "text",
    "{% macro f(a) %}", "{% endmacro %}", "{{ f(1) }}", "{% generation %}", "{% endgeneration %}", "{{ bos_token }}",
    "{{ 'a' * 1000 }}", "{{ messages | length }}", "{{ strftime_now('%Y') }}", "{{ none.x }}", "{{ '%s' | format(1) }}",
    "{% break %}", "{% include 'x' %}", "{% import 'os' as os %}", "{{ lipsum() }}", "{{ cycler(1) }}", "{{", "%}",
    "{{ tools | tojson }}", "{{ messages | map(attribute='content') | join }}", "{{ dict(a=1) }}", "{{ ''.format() }}",
    "{{ range(3) | list }}",
]  # fmt: skip
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": ""}]


@FUZZ
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_a_template_is_refused_or_renders_text(source: str) -> None:
    with contextlib.suppress(ModelError, RequestError):
        template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
        assert isinstance(template.render(MESSAGES, add_generation_prompt=True), str)


MARKERS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "f", "arguments": ',
    '{"type": "function", "function": ', '{"a": 1}', "}", '"f"', "\n", "function", "f", "\n```json\n", "\n```",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
    "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", '<｜DSML｜invoke name="f">', "</｜DSML｜invoke>",
    '<｜DSML｜parameter name="a" string="true">', "</｜DSML｜parameter>", "[", "]", ",", "\\", '"', "text ", "é🙂",
]  # fmt: skip


def read(tool_format: ToolFormat, texts: list[str]) -> ChatMessage:
    parser, message = ToolParser(tool_format, Calls(["f"])), ChatMessage()
    for number, text in enumerate(texts):
        message.extend(parser.push(text, final=number == len(texts) - 1))
    return message


@pytest.mark.parametrize("tool_format", FORMATS.values(), ids=FORMATS)
@FUZZ
@given(st.lists(st.sampled_from(MARKERS), min_size=1, max_size=14), st.integers(1, 7))
def test_calls_are_the_same_however_the_text_is_cut(tool_format: ToolFormat, pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    whole = read(tool_format, [text])
    cut = read(tool_format, [text[i : i + size] for i in range(0, len(text), size)])
    assert cut.content == whole.content
    assert [(call.name, call.arguments) for call in cut.tool_calls] == [
        (call.name, call.arguments) for call in whole.tool_calls
    ]


SCHEMA_KEYS = [
    "type", "properties", "items", "enum", "const", "anyOf", "allOf", "oneOf", "$ref", "$defs", "required", "minimum",
    "maxLength", "pattern", "format", "multipleOf", "additionalProperties", "prefixItems", "not",
]  # fmt: skip
leaf = values | st.sampled_from(["object", "string", "#/$defs/a", "#", "^a*$", "((", "date-time", "integer"])
schemas = st.booleans() | st.recursive(
    st.dictionaries(st.sampled_from(SCHEMA_KEYS), leaf, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from(SCHEMA_KEYS), inner | st.lists(inner, max_size=3), max_size=5),
    max_leaves=8,
)


@FUZZ
@given(schemas)
def test_a_schema_is_refused_or_becomes_a_grammar(schema: Any) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(lark.grammar_of(lark.schema_expression(schema)), str)


patterns = st.lists(st.sampled_from([*"()a*+[]\\|/^$", "{1,9}", "(?=", "\\p{L}", "\n"]), max_size=12).map("".join)


@FUZZ
@given(patterns | st.text(max_size=40))
def test_a_pattern_is_refused_or_becomes_a_grammar(pattern: str) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(lark.grammar_of(lark.regex_expression(pattern)), str)

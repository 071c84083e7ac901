"""Grammars of answers: whatever text follows one is read as calls of these functions, with valid arguments."""

import json
import random

import jsonschema
import llguidance
import pytest

from engine.errors import RequestError
from server.chat.chat_template import ChatTemplate
from server.chat.grammar import of_answer
from server.chat.pieces import ChatMessage
from server.chat.tools.formats import FORMATS
from server.chat.tools.use import ToolUse
from server.protocol import ChatCompletionRequest

POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "additionalProperties": False}
SCHEMAS = {
    "find": {
        "type": "object",
        "properties": {
            "where": {"$ref": "#/$defs/point"},
            "what": {"type": "string"},
            "unit": {"type": "string", "enum": ["m", 'k"m']},
            "code": {"type": "string", "pattern": "^[a-c]{2}$"},
            "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
        "required": ["where", "n"],
        "$defs": {"point": POINT},
    },
    "now": {"type": "object", "properties": {}},
}
BYTES = llguidance.LLTokenizer("byte")
END_OF_TEXT = "</｜DSML｜parameter>"


def use_of(name="hermes", *, schemas=SCHEMAS, strict=None, source="{{ tools }}", **fields):
    tools = [
        {"type": "function", "function": {"name": n, "parameters": s, "strict": strict}} for n, s in schemas.items()
    ]
    messages = [{"role": "user", "content": "x"}]
    body = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools, **fields})
    return ToolUse(body, ChatTemplate(source, {}), name)


def grammar_of(use, form=None, reasoning="no", special=None):
    return of_answer(use, form, reasoning, (special or {}).get)


def allowed(matcher):
    mask = matcher.compute_bitmask()
    return [byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1]


def walk(grammar, seed):
    """A random text of the grammar, that hurries to its end; None if it does not come to one."""
    choice, matcher, text = random.Random(seed), llguidance.LLMatcher(BYTES, grammar), bytearray()
    while len(text) < 3000:
        if matcher.is_stopped() or (matcher.is_accepting() and choice.random() < 0.5):
            return text.decode()
        options = allowed(matcher)
        if len(options) > 150:  # text: a little, and its end
            in_json = not text.endswith(b'"true">')
            written = choice.choice(("", "a ", "</x", "{", "é")) + ('"' if in_json else END_OF_TEXT)
        else:
            first = [byte for byte in options if byte in b'"}],<\n'] if choice.random() < 0.7 else []
            written = bytes([choice.choice(first or options)])
        written = written.encode() if isinstance(written, str) else written
        assert matcher.consume_tokens(list(written)), (text, written, matcher.get_error())
        text += written
    return None


def accepts(grammar, text):
    matcher = llguidance.LLMatcher(BYTES, grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("parallel", [True, False])
def test_every_text_of_a_required_call_is_read_as_valid_calls(name, parallel):
    use = use_of(name, tool_choice="required", parallel_tool_calls=parallel)
    grammar = grammar_of(use)
    texts = [text for seed in range(12) if (text := walk(grammar, seed)) is not None]
    assert len(texts) > 3
    counts = []
    for text in texts:
        message = ChatMessage()
        message.extend(use.parser().push(text, final=True))
        assert message.content == ""
        assert message.tool_calls
        counts.append(len(message.tool_calls))
        for call in message.tool_calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    assert max(counts) > 1 if parallel else max(counts) == 1


def test_a_named_function_alone_can_be_called():
    named = {"type": "function", "function": {"name": "now"}}
    grammar = grammar_of(use_of(tool_choice=named))
    assert accepts(grammar, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not accepts(grammar, '<tool_call>\n{"name": "find"')
    assert not accepts(grammar, "text")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "llama3"])
def test_strict_functions_are_called_by_their_schemas_in_an_answer_that_is_free(name):
    use = use_of(name, strict=True)
    grammar = grammar_of(use)
    assert accepts(grammar, "Text with < and {.\n")
    matcher = llguidance.LLMatcher(BYTES, grammar)
    assert matcher.consume_tokens(list(f"So.\n{use.format.opener}".encode()))
    assert len(allowed(matcher)) <= 1  # no way but into a call
    assert grammar_of(use_of(name, strict=False)) is None


def test_what_is_not_strict_has_any_arguments_beside_what_is():
    schemas = {"loose": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    tools = [
        {"type": "function", "function": {"name": n, "parameters": s, "strict": n == "now"}}
        for n, s in (SCHEMAS | schemas).items()
    ]
    grammar = grammar_of(use_of(tools=tools))
    assert accepts(
        grammar, '<tool_call>\n{"name": "loose", "arguments": {"a": "text", "b": 1}}\n</tool_call> and so on'
    )
    assert not accepts(grammar, '<tool_call>\n{"name": "now", "arguments": {"b": 1}}\n</tool_call>')


CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_an_answer_of_a_form_has_the_form_or_is_calls():
    form = 'start: "yes" | "no"\n'
    grammar = grammar_of(use_of(), form)
    assert accepts(grammar, "yes")
    assert accepts(grammar, CALL)
    assert not accepts(grammar, "maybe")
    assert grammar_of(use_of(schemas={}), form) == form
    assert not accepts(grammar_of(use_of(tool_choice="required"), form), "yes")


def test_reasoning_is_free_and_what_follows_it_is_not():
    required = use_of(tool_choice="required")
    inside = grammar_of(required, reasoning="inside")
    assert accepts(inside, f"Hm, <tool_call> {{\n</think>\n\n{CALL}")
    assert not accepts(inside, CALL)
    maybe = grammar_of(required, reasoning="maybe")
    assert accepts(maybe, CALL)
    assert accepts(maybe, f"<think>\nhm\n</think>\n\n{CALL}")
    assert not accepts(maybe, "hm")
    off = grammar_of(required)
    assert not accepts(off, f"<think>hm</think>{CALL}")
    with_form = grammar_of(use_of(), 'start: "yes"\n', reasoning="inside")
    assert accepts(with_form, "hm</think>\nyes")
    assert accepts(with_form, f"hm</think>{CALL}")


def test_markers_that_are_special_tokens_are_told_by_their_ids():
    special = {"[TOOL_CALLS]": 5, "<think>": 6, "</think>": 7}
    grammar = grammar_of(use_of("mistral", tool_choice="required"), reasoning="inside", special=special)
    assert "<[5]>" in grammar
    assert "<[7]>" in grammar
    assert "TOOL_CALLS" not in grammar
    assert "<[5]>" in grammar_of(use_of("mistral", strict=True), special=special)


def test_dsml_can_write_arguments_that_no_schema_lists():
    use = use_of("deepseek-v3.2", tool_choice="required", schemas={"f": {"type": "object"}})
    d = "｜DSML｜"
    text = (
        f'<{d}function_calls>\n<{d}invoke name="f">\n<{d}parameter name="a b" string="true">x</{d}parameter>\n'
        f'<{d}parameter name="c" string="false">[1]</{d}parameter>\n</{d}invoke>\n</{d}function_calls>'
    )
    assert accepts(grammar_of(use), text)
    message = ChatMessage()
    message.extend(use.parser().push(text, final=True))
    assert json.loads(message.tool_calls[0].arguments) == {"a b": "x", "c": [1]}
    odd = {"f": {"type": "object", "properties": {'a"b': {"type": "string"}}}}
    with pytest.raises(RequestError, match="no way to write"):
        grammar_of(use_of("deepseek-v3.2", tool_choice="required", schemas=odd))


def test_a_schema_that_cannot_be_enforced_is_refused():
    schemas = {"f": {"type": "object", "minProperties": 5}}
    with pytest.raises(RequestError, match="minProperties"):
        grammar_of(use_of(tool_choice="required", schemas=schemas))

"""Each format's calls, read from text: the same however the text is cut, and nothing that was written is lost."""

import json
import random
import re

import pytest

from server.chat.pieces import ChatMessage, Content, ToolCallArguments, ToolCallStart
from server.chat.tools.dsml import DsmlFormat
from server.chat.tools.format import Calls, ToolParser
from server.chat.tools.formats import FORMATS, format_of
from server.chat.tools.mistral import MistralFormat

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
D = "｜DSML｜"
HERMES, LLAMA, V3, V31, DSML = (
    FORMATS[n] for n in ("hermes", "llama3", "deepseek-v3", "deepseek-v3.1", "deepseek-v3.2")
)
LISTED, NAMED = MistralFormat(named=False), MistralFormat(named=True)


def v3(name, arguments):
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


def dsml(block, *calls):
    parts = [
        f'<{D}invoke name="{name}">\n' + "".join(p + "\n" for p in params) + f"</{D}invoke>" for name, params in calls
    ]
    invoked = "\n".join(parts)
    return f"<{D}{block}>\n{invoked}\n</{D}{block}>"


def param(name, value, is_string):
    return f'<{D}parameter name="{name}" string="{is_string}">{value}</{D}parameter>'


def hermes(text):
    return f"<tool_call>\n{text}\n</tool_call>"


A, B = '{"city": "Paris", "days": [1, {"x": "}"}]}', '{"q": "a \\"b\\" \\\\ é </tool_call> {"}'
CASES = [
    (HERMES, "No call at all, a < b.\n", "No call at all, a < b.\n", []),
    (HERMES, hermes(f'{{"name": "f", "arguments": {A}}}'), "", [("f", A)]),
    (HERMES, f'I look.\n\n{hermes(f"""{{"name": "f", "arguments": {B}}}""")}\n', "I look.", [("f", B)]),
    (
        HERMES,
        hermes(f'{{"name":"f","arguments":{A}}}') + "\n" + hermes('{"name": "g", "arguments": {}}'),
        "",
        [("f", A), ("g", "{}")],
    ),
    (
        HERMES,
        f'<tool_call>[{{"name": "f", "arguments": {A}}}, {{"name": "g"}}]</tool_call>',
        "",
        [("f", A), ("g", "{}")],
    ),
    (HERMES, hermes(f'{{"arguments": {A}, "name": "f"}}'), "", [("f", A)]),
    (HERMES, hermes(f'{{"type": "function", "name": "f", "id": "1", "parameters": {A}}}'), "", [("f", A)]),
    (HERMES, hermes(f'{{"type": "function", "function": {{"name": "f", "arguments": {A}}}}}'), "", [("f", A)]),
    (HERMES, hermes('{"name": "f", "arguments": "{\\"a\\": 1}"}'), "", [("f", '{"a": 1}')]),
    (HERMES, hermes('{"name": "f", "arguments": null}'), "", [("f", "{}")]),
    (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}', "", [("f", A)]),  # the closing is forgotten
    (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}}}\n</too', "", [("f", A)]),  # or cut off
    (HERMES, hermes(f'{{"name": "f", "arguments": {A}}}') + "\n<tool", "", [("f", A)]),
    (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}</tool_call>after', "after", [("f", A)]),
    (HERMES, hermes('{"name": "f", "arguments": {}}') + "\nDone.", "\nDone.", [("f", "{}")]),
    (HERMES, hermes('{"name": "nobody", "arguments": {}}'), hermes('{"name": "nobody", "arguments": {}}'), []),
    (HERMES, "a\n" + hermes("no JSON"), "a\n" + hermes("no JSON"), []),
    (HERMES, hermes('{"x": 1}'), hermes('{"x": 1}'), []),
    (HERMES, "<tool_call></tool_call>", "<tool_call></tool_call>", []),
    (HERMES, '<tool_call>\n{"name": "f', '<tool_call>\n{"name": "f', []),
    (HERMES, "<tool_call> said\n" + hermes(f'{{"name": "f", "arguments": {A}}}'), "<tool_call> said", [("f", A)]),
    (HERMES, "ends with <tool_c", "ends with <tool_c", []),
    (LLAMA, f'{{"name": "f", "parameters": {A}}}', "", [("f", A)]),
    (LLAMA, f'<|python_tag|>{{"type": "function", "name": "f", "parameters": {A}}}', "", [("f", A)]),
    (LLAMA, f'{{"name": "f", "parameters": {A}}}; {{"name": "g", "parameters": {{}}}}', "", [("f", A), ("g", "{}")]),
    (LLAMA, '{"city": "Paris"}', '{"city": "Paris"}', []),
    (LLAMA, '\n{"name": "Bob", "age": 3}', '\n{"name": "Bob", "age": 3}', []),
    (LLAMA, f'See {{"name": "f", "parameters": {A}}}', f'See {{"name": "f", "parameters": {A}}}', []),
    (LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (V3, f"{BEGIN}{v3('f', A)}{END}", "", [("f", A)]),
    (V3, f"Text.{BEGIN}{v3('f', A)}\n{v3('g', '{}')}{END}", "Text.", [("f", A), ("g", "{}")]),
    (V3, f"{BEGIN}{v3('nobody', A)}{END}", f"{BEGIN}{v3('nobody', A)}{END}", []),
    (V3, f"{BEGIN}{v3('f', A)}{v3('nobody', '{}')}{END}", f"{v3('nobody', '{}')}{END}", [("f", A)]),
    (V3, f"{BEGIN}{CALL}function{SEP}f", f"{BEGIN}{CALL}function{SEP}f", []),
    (V31, f"{BEGIN}{CALL}f{SEP}{A}{CALL_END}{CALL}g{SEP}{{}}{CALL_END}{END}", "", [("f", A), ("g", "{}")]),
    (V31, f"{BEGIN}{CALL}f{SEP}oops{CALL_END}{END}", f"{BEGIN}{CALL}f{SEP}oops{CALL_END}{END}", []),
    (
        DSML,
        "So.\n\n" + dsml("function_calls", ("f", [param("s", 'a "q"\n\\ é', "true"), param("n", "[1, 2]", "false")])),
        "So.",
        [("f", '{"s": "a \\"q\\"\\n\\\\ é", "n": [1, 2]}')],
    ),
    (
        DSML,
        dsml("tool_calls", ("g", []), ("f", [param("n", "x y", "false")])),
        "",
        [("g", "{}"), ("f", '{"n": "x y"}')],
    ),
    (DSML, dsml("tool_calls", ("nobody", [])), dsml("tool_calls", ("nobody", [])), []),
    (
        LISTED,
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {A}}}, {{"name": "g", "arguments": {{}}}}]',
        "",
        [("f", A), ("g", "{}")],
    ),
    (NAMED, f"Hm.[TOOL_CALLS]f[ARGS]{A}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{{}}", "Hm.", [("f", A), ("g", "{}")]),
    (NAMED, f"[TOOL_CALLS]nobody[ARGS]{A}", f"[TOOL_CALLS]nobody[ARGS]{A}", []),
]


def parse(tool_format, pieces, **options):
    parser = ToolParser(tool_format, Calls(("f", "g"), id_length=tool_format.id_length, **options))
    message, found = ChatMessage(), []
    for i, piece in enumerate([*pieces, ""]):
        found += parser.push(piece, final=i == len(pieces))
    message.extend(found)
    return message, found


def summary(message):
    return message.content, [(call.name, call.arguments) for call in message.tool_calls]


def cuts(text, seed):
    cut, pieces = random.Random(seed), []
    while text:
        size = cut.randint(1, 9)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), CASES)
def test_calls_are_the_same_however_the_text_arrives(tool_format, text, content, calls):
    expected = (content, calls)
    for pieces in ([text], list(text), *(cuts(text, seed) for seed in range(30))):
        message, found = parse(tool_format, pieces)
        assert summary(message) == expected
        assert all(piece.text for piece in found if not isinstance(piece, ToolCallStart))
        assert all(json.loads(call.arguments) is not None for call in message.tool_calls)
        starts = [piece.index for piece in found if isinstance(piece, ToolCallStart)]
        assert starts == list(range(len(calls)))
        order = [piece.index for piece in found if isinstance(piece, ToolCallArguments)]
        assert order == sorted(order)


def test_a_name_comes_before_its_arguments_and_arguments_as_they_are_written():
    for tool_format, opening in [
        (HERMES, '<tool_call>\n{"name": "f"'),
        (LLAMA, '{"name": "f"'),
        (V31, f"{BEGIN}{CALL}f{SEP}{{"),
        (V3, f"{BEGIN}{CALL}function{SEP}f\n```json\n{{"),
        (DSML, f'<{D}function_calls>\n<{D}invoke name="f">'),
        (NAMED, "[TOOL_CALLS]f[ARGS]{"),
    ]:
        parser = ToolParser(tool_format, Calls(["f"]))
        pieces = [piece for char in opening for piece in parser.push(char, final=False)]
        assert isinstance(pieces[0], ToolCallStart)
        assert pieces[0].name == "f"
    parser = ToolParser(HERMES, Calls(["f"]))
    parser.push('<tool_call>\n{"name": "f", "arguments": {"text": "', final=False)
    assert parser.push("word", final=False) == [ToolCallArguments(0, "word")]
    parser = ToolParser(DSML, Calls(["f"]))
    parser.push(f'<{D}function_calls>\n<{D}invoke name="f">\n<{D}parameter name="t" string="true">', final=False)
    assert parser.push('a "word"', final=False) == [ToolCallArguments(0, 'a \\"word\\"')]


def test_content_is_not_held_back_beyond_what_may_begin_a_call():
    parser = ToolParser(HERMES, Calls(["f"]))
    assert parser.push("words and <too", final=False) == [Content("words and")]
    assert parser.push("k", final=False) == [Content(" <took")]
    assert ToolParser(LLAMA, Calls(["f"])).push('{"city": "P', final=False) != []  # JSON that is no call


@pytest.mark.parametrize("tool_format", [HERMES, V3, V31, LISTED], ids=lambda f: f.name)
def test_a_call_that_is_cut_off_keeps_what_was_written(tool_format):
    whole = {
        HERMES: f'<tool_call>{{"name": "f", "arguments": {A}',
        V3: f"{BEGIN}{CALL}function{SEP}f\n```json\n{A}",
        V31: f"{BEGIN}{CALL}f{SEP}{A}",
        LISTED: f'[TOOL_CALLS][{{"name": "f", "arguments": {A}',
    }[tool_format]
    message, _ = parse(tool_format, list(whole[:-9]))
    assert summary(message) == ("", [("f", A[:-9])])


def test_a_dsml_call_that_is_cut_off_is_no_whole_json():
    text = dsml("function_calls", ("f", [param("a", "x", "true"), param("b", "1", "false")]))
    for length in range(text.index("parameter"), text.index(f"</{D}invoke>") + 5):
        message, _ = parse(DSML, [text[:length]])
        assert not message.tool_calls or not message.tool_calls[0].arguments.endswith("}")


@pytest.mark.parametrize("tool_format", [HERMES, LLAMA, V31], ids=lambda f: f.name)
def test_one_call_alone_is_let_through_where_calls_are_not_parallel(tool_format):
    text = next(text for f, text, _, calls in CASES if f is tool_format and len(calls) == 2)
    for pieces in ([text], list(text)):
        assert summary(parse(tool_format, pieces, parallel=False)[0]) == ("", [("f", A)])


def test_ids_are_openais_or_nine_alphanumerics():
    ids = {parse(HERMES, [CASES[1][1]])[0].tool_calls[0].call_id for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch("call_[A-Za-z0-9]{24}", call_id) for call_id in ids)
    message, _ = parse(NAMED, [f"[TOOL_CALLS]f[ARGS]{A}"])
    assert re.fullmatch("[A-Za-z0-9]{9}", message.tool_calls[0].call_id)


def test_very_many_openers_cost_no_more_than_the_text():
    text = '<tool_call>{"name": ' * 20_000
    message, _ = parse(HERMES, [text])
    assert message.content == text


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (f"{CALL}...```json", "deepseek-v3"),
        (f"{CALL}...{SEP}", "deepseek-v3.1"),
        (f"<{D}function_calls>", "deepseek-v3.2"),
        ("<tool_call></tool_call>", "hermes"),
        ("<tool_call>\n<function=", None),
        ('<|start_header_id|> Respond in the format {"name": ..., "parameters": ...}', "llama3"),
        ("[TOOL_CALLS]", "mistral"),
        ("{{ messages }}", None),
    ],
)
def test_a_template_shows_the_format(template, name):
    found = format_of(template)
    assert (found.name if found else None) == name


def test_dsmls_blocks_are_called_as_the_template_calls_them():
    assert isinstance(found := format_of(f"<{D}tool_calls>"), DsmlFormat)
    assert "<｜DSML｜tool_calls>" in found.instructions([])

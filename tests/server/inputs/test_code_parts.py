"""Parts of type code are found in what templates make of conversations."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat.chat_template import ChatTemplate, named_template
from server.chat.prompt import render
from server.chat.tools.use import ToolUse
from server.inputs import code_parts
from server.inputs.code_parts import CodeParts
from server.protocol import ChatCompletionRequest
from tests.support.tiny import BOS, CHAT_TEMPLATE, EOS

NAMED = ("deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v3.2")
EACH = "{%% for m in messages %%}<%s>{%% endfor %%}"
SOURCES = {
    **{name: named_template(name) for name in NAMED},
    "tiny": CHAT_TEMPLATE,
    "trims": EACH % "{{ m.content | trim }}",
    "strips lines": EACH % "{{ m.content.strip('\\n') }}",
    "escapes": EACH % "{{ m.content | tojson }}",
    "shouts": EACH % "{{ m.content | upper }}",
    "says it twice": EACH % "{{ m.content }}|{{ m.content }}",
}


def text(words):
    return {"type": "text", "text": words}


def code(words, key="text"):
    return {"type": "code", key: words}


def found(source, *contents, role="user", **fields):
    """(prompt, its code) of a conversation of these contents."""
    messages = [{"role": role, "content": content} for content in contents]
    body = ChatCompletionRequest.model_validate({"messages": messages, **fields})
    template = ChatTemplate(source, {"bos_token": BOS, "eos_token": EOS})
    template.render_apart = lambda *args, **options: asyncio.sleep(0, template.render(*args, **options))

    async def both(parts):
        tools = ToolUse(body, template, "auto")
        return await render(template, body, tools), await render(template, body, tools, parts.marked)

    parts = CodeParts()
    prompt, marked = asyncio.run(both(parts))
    result = parts.find(prompt, marked)
    assert result.text == prompt
    last = 0
    for start, stop in result.code:
        assert last <= start <= stop
        last = stop
    return prompt, [prompt[start:stop] for start, stop in result.code]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_code_is_found_between_texts(source):
    prompt, pieces = found(source, [text("a b "), code("x = 1"), text(" c "), code("y", key="code"), text("d")], "and?")
    expected = ["x = 1", "y"]
    if source is SOURCES["says it twice"]:
        expected *= 2
    if source is SOURCES["shouts"]:
        expected = ["X = 1", "Y"]
    assert pieces == expected
    assert ("A B X = 1 C YD" if source is SOURCES["shouts"] else "a b x = 1 c yd") in prompt


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_prompt_is_the_one_without_marks(source):
    contents = [[text("\n"), code("\n x\n")], [code("  "), text("a")], [code(" "), code("\ty "), code("\n")]]
    plain = ["".join(part["text"] for part in parts) for parts in contents]
    prompt, pieces = found(source, *contents)
    assert prompt == found(source, *plain)[0]
    if source is not SOURCES["shouts"]:
        assert {piece.strip() for piece in pieces} == {"x", "y"}


def test_spaces_of_code_that_the_template_keeps_are_code():
    assert found(CHAT_TEMPLATE, [text("a "), code("\n  x\n"), text("b")])[1] == ["\n  x\n"]
    assert found(SOURCES["trims"], [text("a "), code("\n  x\n"), text("b")])[1] == ["\n  x\n"]
    assert found(SOURCES["trims"], [code("\n  x\n")])[1] == ["x"]


def test_of_code_that_the_template_cuts_the_rest_is_code():
    thought = [code("a = 1\n</think>\nb = 2"), text(" done")]
    prompt, pieces = found(named_template("deepseek-r1"), "hi", thought, role="assistant")
    assert "a = 1" not in prompt
    assert pieces == [">\nb = 2"], "the code had this character there, and so has the template"
    cut = EACH % "{{ m.content.split('|')[0] }}"
    assert found(cut, [text("t"), code("x = 1|2"), text("t")], [code("|")])[1] == ["x = 1"]


def test_where_marks_change_more_the_prompt_is_searched():
    parts = [text("t "), code("x = 1"), text(" u")], [code("x = 1")]
    assert found(EACH % "{{ m.content | length }}: {{ m.content }}", *parts)[1] == ["x = 1", "x = 1"]
    assert found(EACH % "{{ m.content[:5] }}", *parts)[1] == ["x = 1"]


def test_all_roles_and_tools_results_may_have_code():
    call = {"role": "assistant", "content": [code("s")], "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    result = {"role": "tool", "tool_call_id": "1", "content": [text("r "), code("t")]}
    messages = [{"role": "system", "content": [code("p")]}, {"role": "user", "content": [code("q")]}, call, result]
    for name in NAMED[1:]:
        body = {"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]}
        assert found(named_template(name), **body)[1] == ["p", "q", "s", "t"], name


def test_a_message_that_is_continued_may_end_in_code():
    fields = {"continue_final_message": True}
    prompt, pieces = found(
        named_template("deepseek-v3"), "hi", [text("see "), code("x =\n")], role="assistant", **fields
    )
    assert prompt.endswith("see x =\n")
    assert pieces == ["x =\n"]


def test_marks_that_a_text_has_already_are_none(monkeypatch):
    monkeypatch.setattr(code_parts.secrets, "randbelow", lambda _: 12)
    mark = f"{12:024}1{0:07}"
    prompt, pieces = found(CHAT_TEMPLATE, [text(f"{mark}not code "), code("x")])
    assert pieces == ["x"]
    assert mark in prompt


def test_each_conversation_has_other_marks():
    assert CodeParts().marked("x") != CodeParts().marked("x")


@given(st.lists(st.tuples(st.booleans(), st.text("ax0 \n`é🤖<", max_size=6)), min_size=1, max_size=6))
def test_whatever_the_parts_the_code_is_found(drawn):
    drawn = [*drawn, (False, ".")]
    parts = [code(words) if is_code else text(words) for is_code, words in drawn]
    prompt, pieces = found("{% for m in messages %}>{{ m.content }}{% endfor %}", parts)
    assert prompt == ">" + "".join(words for _, words in drawn)
    assert "".join(pieces).split() == "".join(words for is_code, words in drawn if is_code and words.strip()).split()

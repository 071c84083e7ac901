"""Structured output through the API: every field that asks for it, whole and streamed, and what is refused."""

import asyncio
import json
from typing import Any

import jsonschema
import pytest

from engine.grammar_check import check
from engine.loading.resolve import ModelSource
from server.grammar.checker import GrammarChecker
from server.text.tokenizer import Tokenizer
from tests.server.conftest import CHAT, COMPLETIONS, EOS_ID, check_error, text_of
from tests.support.grammar import compiler

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["city", "size"],
    "additionalProperties": False,
}
NAMED = {"name": "place", "description": "Where.", "schema": SCHEMA, "strict": True}
CLOSED = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """Grammars are tried in this process, which is faster; test_checker has the real way, and so does the last test."""
    tried_on = compiler()

    def try_here(self, grammar):
        self._vocabulary()
        return check(tried_on, grammar)

    monkeypatch.setattr(GrammarChecker, "_try", try_here)


def validates(schema):
    return lambda text: jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


FORMS = [  # the field, and what its outputs must be
    ("response_format", {"type": "json_schema", "json_schema": NAMED}, validates(SCHEMA)),
    ("response_format", {"type": "json_schema", "json_schema": {**NAMED, "strict": False}}, validates(SCHEMA)),
    ("structured_outputs", {"json": SCHEMA}, validates(SCHEMA)),
    ("structured_outputs", {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}, lambda text: " :" not in text),
    ("structured_outputs", {"json": CLOSED, "disable_additional_properties": True, "disable_fallback": True},
     lambda text: json.loads(text) in ({"a": 1}, {"a": 2})),
    ("structured_outputs", {"json": SCHEMA, "whitespace_pattern": "_?"}, lambda text: "_" in text or " " not in text),
    ("structured_outputs", {"regex": "[a-c]{2}-[0-9]+x"}, lambda text: text[2] == "-" and text.endswith("x")),
    ("structured_outputs", {"choice": ["red", "green"]}, lambda text: text in ("red", "green")),
    ("structured_outputs", {"grammar": 'start: "a" B\nB: /b{1,3}/\n'}, lambda text: text.strip("b") == "a"),
    ("guided_json", SCHEMA, validates(SCHEMA)),
    ("guided_json", json.dumps(SCHEMA), validates(SCHEMA)),
    ("guided_regex", "^(yes|no)$", lambda text: text in ("yes", "no")),
    ("guided_choice", ["red", "green"], lambda text: text in ("red", "green")),
    ("guided_grammar", 'root ::= "x" | "y"', lambda text: text in ("x", "y")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "is_right"), FORMS, ids=lambda value: None if callable(value) else str(value)
)
async def test_every_output_has_the_form_whole_and_streamed(api, path, name, value, is_right):
    body = {name: value, "max_tokens": 120, "n": 3, "temperature": 1.3, "seed": 5, "logit_bias": {str(EOS_ID): 5}}
    answer = await api.ask(path, **body)
    chunks = await api.stream(path, **body)
    texts = [text_of(answer, choice=i) for i in range(3)]
    assert [text_of(*chunks, choice=i) for i in range(3)] == texts
    for choice, text in zip(answer["choices"], texts, strict=True):
        assert choice["finish_reason"] in ("stop", "length")
        if choice["finish_reason"] == "stop":
            assert is_right(text), text
    assert any(choice["finish_reason"] == "stop" for choice in answer["choices"])


async def test_json_object_is_an_object(api, path):
    bias = {str(ord(char)): 8 for char in '"}'}  # else few of them end
    body = {"response_format": {"type": "json_object"}, "max_tokens": 60, "n": 16, "seed": 1, "logit_bias": bias}
    answer = await api.ask(path, **body)
    ended = [i for i, choice in enumerate(answer["choices"]) if choice["finish_reason"] == "stop"]
    assert ended
    assert all(isinstance(json.loads(text_of(answer, choice=i)), dict) for i in ended)


async def test_a_text_that_is_cut_off_says_length(api, path):
    answer = await api.ask(path, response_format={"type": "json_schema", "json_schema": NAMED}, max_tokens=4)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert text_of(answer).startswith("{")


async def test_free_text_can_be_asked_for_by_name(api, path):
    free = await api.ask(path, max_tokens=8, temperature=0)
    named = await api.ask(path, max_tokens=8, temperature=0, response_format={"type": "text"})
    assert text_of(free) == text_of(named)
    both = await api.ask(path, max_tokens=9, response_format={"type": "text"}, structured_outputs={"choice": ["a"]})
    assert text_of(both) == "a"


async def test_the_order_of_properties_is_the_schema_s(api, path):
    schema = {"type": "object", "properties": {name: {"const": 1} for name in "zaq"}, "required": ["a", "q", "z"],
              "additionalProperties": False}  # fmt: skip
    answer = await api.ask(path, structured_outputs={"json": schema, "disable_any_whitespace": True}, max_tokens=60)
    assert text_of(answer) == '{"z":1,"a":1,"q":1}'


async def test_logprobs_and_usage_count_every_token(api):
    choice = await api.choice("hi", structured_outputs={"choice": ["abc"]}, max_tokens=9, logprobs=1)
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert all(value < 0 for value in choice["logprobs"]["token_logprobs"])


async def test_a_stop_string_cuts_the_text_as_always(api):
    choice = await api.choice("hi", structured_outputs={"choice": ["abcd"]}, stop="c", max_tokens=9)
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")


BAD = [
    ("response_format", {"type": "xml"}, "'text', 'json_object', 'json_schema'"),
    ("response_format", {"type": "json_schema"}, "json_schema"),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}, "'response_format.json_schema.name'"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "name"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}, "Unimplemented"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "any"}}}, "any"),
    ("structured_outputs", {}, "just one of"),
    ("structured_outputs", {"regex": "a", "choice": ["a"]}, "just one of"),
    ("structured_outputs", {"structural_tag": "{}"}, "structural_tag"),
    ("structured_outputs", {"choice": []}, "choice"),
    ("structured_outputs", {"choice": [""]}, "empty"),
    ("structured_outputs", {"regex": "(?=a)"}, "look-around"),
    ("structured_outputs", {"json": "{not json"}, "not valid JSON"),
    ("structured_outputs", {"json": SCHEMA, "whitespace_pattern": "("}, "regex"),
    ("structured_outputs", {"grammar": "what?"}, "neither Lark"),
    ("structured_outputs", {"regex": "a", "whitespace_pattern": " "}, "'whitespace_pattern' goes with 'json'"),
    ("structured_outputs", {"regex": "a", "disable_any_whitespace": True}, "'disable_any_whitespace' goes with"),
    ("structured_outputs", {"choice": ["a"], "disable_additional_properties": True}, "'disable_additional_prop"),
    ("guided_grammar", "start: a\na[temperature=5.0]: /.*/", "'temperature' has no effect"),
    ("guided_regex", "(", "unclosed"),
    ("guided_json", [1], "guided_json"),
    ("guided_decoding_backend", "other", "guided_decoding_backend"),
    ("guided_whitespace_pattern", " ", "guided_json"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD, ids=str)
async def test_what_cannot_be_is_refused_with_the_reason_and_counted(api, path, name, value, reason):
    before = await api.metric("requests_refused_total", reason="invalid")
    error = check_error(await api.post(path, **{name: value}), 400, type="invalid_request_error", param=name)
    assert reason in error["message"]
    assert await api.metric("requests_refused_total", reason="invalid") == before + 1
    streamed = check_error(await api.post(path, **{name: value}, stream=True), 400, param=name)
    assert streamed["message"] == error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {"guided_json": {}, "guided_regex": "a"},
        {"structured_outputs": {"regex": "a"}, "guided_choice": ["a"]},
    ],
)
async def test_two_forms_do_not_go_together(api, path, fields):
    error = check_error(await api.post(path, **fields), 400, param=list(fields)[1])
    assert all(f"'{name}'" in error["message"] for name in fields)


async def test_many_prompts_take_no_large_grammar(api):
    body = {"guided_choice": ["x" * 20_000, "y"], "max_tokens": 1}
    response = await api.post(COMPLETIONS, prompt=["hi"] * 1000, **body)
    assert response.status_code == 400
    assert "too many for 1000 prompts" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "guided_choice"
    await api.complete(["hi"] * 2, **body)


async def test_a_grammar_that_cannot_be_followed_further_ends_its_request_with_an_error(api, path, monkeypatch):
    monkeypatch.setattr("engine.grammars.Matcher.accept", lambda self, token_id: "error")
    monkeypatch.setattr(f"{__name__}.check", lambda _, grammar: (grammar, ""))
    body = {"structured_outputs": {"choice": ["abc"]}}
    error = check_error(await api.post(path, **body), 500, type="server_error")
    assert "could not be followed" in error["message"]
    (event,) = [chunk for chunk in await api.stream(path, **body) if "error" in chunk]
    assert event["error"] == error


async def test_one_that_takes_too_long_delays_nobody(serve, monkeypatch):
    monkeypatch.undo()  # of `in_process`
    api = await serve()
    await api.choice("hi", structured_outputs={"choice": ["a"]})  # the process is up
    api.app.state.server.grammars._timeout = 1.0
    endless = {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967)]}
    hostile = asyncio.create_task(api.post(COMPLETIONS, structured_outputs={"json": endless}))
    answers = [await api.ask(CHAT, structured_outputs={"choice": [f"a{i}"]}, max_tokens=5) for i in range(3)]
    assert [text_of(answer) for answer in answers] == ["a0", "a1", "a2"]
    assert not hostile.done()
    error = check_error(await hostile, 400, param="structured_outputs")
    assert "takes more than 1 s" in error["message"]
    await api.until_idle()


async def test_a_model_that_reasons_does_so_first_and_freely(serve, tiny_llama, say, ids_of):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    api = await serve(Tokenizer.load(ModelSource(tiny_llama, "tiny"), template))
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    say(ids_of('{"x" hm</think>\n\n{"a":1}'))
    (choice,) = (await api.chat("hi", response_format=form, max_tokens=60))["choices"]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"]) == {"a": 1}
    assert choice["message"]["reasoning_content"] == '{"x" hm'
    say(ids_of("hm</think>x"))
    check_error(await api.post(CHAT, response_format=form, max_tokens=60), 500)
    await api.until_idle()

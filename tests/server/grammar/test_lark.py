"""Grammars of texts, regular expressions, choices, and of what users write themselves."""

import re

import pytest

from engine.errors import RequestError
from engine.grammar_check import check
from server.grammar.lark import choice, grammar_of, regex_expression, schema_expression, text_expression, user_grammar
from tests.support.grammar import matches

TEXTS = [
    "a",
    'quo"te',
    "back\\slash",
    "new\nline\ttab\r",
    "é中😀",
    "\x00\x7f",
    "a/b",
    "<|eos|>",
    "%json",
    "// no",
    "{{}}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stands_for_itself(compiler, text):
    assert matches(compiler, grammar_of(text_expression(text)), text)
    assert matches(compiler, choice(["other", text]), text)
    assert not matches(compiler, choice(["other", text]), text + "x")


REGEXES = [  # pattern, a text that it matches as a whole, one that it does not
    ("[0-9]{3}", "123", "1234"),
    ("^abc$", "abc", "xabc"),
    ("^(a|b)$", "b", "ab"),
    ("a|bc", "bc", "ac"),
    (r"a\$", "a$", "a"),
    (r"\\$", "\\", "\\$"),
    ("a/b", "a/b", "ab"),
    (r"a\/b", "a/b", "ab"),
    ("[/]x", "/x", "x"),
    ("a\nb", "a\nb", "ab"),
    (r"\d\w", "1é", "a1"),
    ("é|中+", "中中", "é中"),
    ("(?i)ok", "OK", "O"),
    ("x*?y", "xxy", "xx"),
    ("a?", "", "b"),
]


@pytest.mark.parametrize(("pattern", "right", "wrong"), REGEXES)
def test_a_regular_expression_matches_the_whole_text(compiler, pattern, right, wrong):
    grammar = grammar_of(regex_expression(pattern))
    assert matches(compiler, grammar, right)
    assert not matches(compiler, grammar, wrong)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(?=a)b", "look-around"), (r"(a)\1", "backreferences"), ("(", "unclosed group"), ("a)(b", "unopened group")],
)
def test_what_no_automaton_can_match_is_refused(compiler, pattern, reason):
    with pytest.raises(RequestError, match=reason):
        compiler.compile(grammar_of(regex_expression(pattern)))


def test_expressions_make_larger_grammars(compiler):
    call = f"start: {text_expression('<call>')} {schema_expression({'type': 'integer'})} {text_expression('</call>')}"
    assert matches(compiler, call, "<call>12</call>")
    assert not matches(compiler, call, "<call>x</call>")


GRAMMARS = [
    ('start: "a"+ END\nEND: /[xy]/\n', "aay"),
    ('?start: pair\npair: "a" "b"', "ab"),
    ('%llguidance {}\nstart: "a"', "a"),
    ('// words\nstart: "a"', "a"),
    ('start: %json {"type": "integer"}', "12"),
    ('root ::= "a" [0-9]+ ("b" | "c")? # words\n', "a12c"),
    ('root ::= item ("," item)*\nitem ::= [^,"\\n]+', "x y,z"),
    ('root ::= "select " column\ncolumn ::= "col_1" | "col_2"', "select col_2"),
]


@pytest.mark.parametrize(("text", "right"), GRAMMARS)
def test_a_grammar_is_lark_or_gbnf(compiler, text, right):
    in_lark, reason = check(compiler, user_grammar(text))
    assert not reason
    assert matches(compiler, in_lark, right)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "neither Lark"),
        ("", "neither Lark"),
        ('{"grammars": []}', "neither Lark"),
        ('root ::= "a" other', "'other' not found"),
        ('start: "a" other', "unknown name"),
        ("start: <[999]>", "999"),
        ('start: ""', "no text but the empty one"),
        ("root ::= " + "(" * 20000, "neither Lark|too deeply"),
    ],
)
def test_a_bad_grammar_is_refused_with_the_reason(compiler, text, reason):
    _, found = check(compiler, user_grammar(text))
    assert re.search(reason, found), found


@pytest.mark.parametrize(
    ("attributes", "idle"),
    [
        ("temperature=5.0", "temperature"),
        ('stop="]", temperature = 1', "temperature"),
        ("capture", "capture"),
        ('stop="x", stop_capture="y"', "stop_capture"),
        ('stop="temperature=1"', ""),
        ("max_tokens=2", ""),
    ],
)
def test_a_rule_s_attribute_without_effect_is_refused_by_its_name(attributes, idle):
    text = f"start: a\na[{attributes}]: /.*/\n"
    if idle:
        with pytest.raises(RequestError, match=f"'{idle}' has no effect"):
            user_grammar(text)
    else:
        assert user_grammar(text) == text

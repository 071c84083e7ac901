"""Which characters of a text are code."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.inputs.fences import code_spans


def drawn(text, spans):
    """The text with code's characters as c, and text's as dots."""
    marks = ["."] * len(text)
    for start, stop in spans:
        assert start < stop
        marks[start:stop] = "c" * (stop - start)
    return "".join(marks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("no code", "......."),
        ("a```b```c", "....c...."),
        ("a```py\nb\n```c", "....ccccc...."),
        ("```a```b```c```", "...c.......c..."),
        ("a```b", "....c"),
        ("a```", "...."),
        ("``````", "......"),
        ("`a` ``b``", "........."),
        ("````a```b````c", "....ccccc....."),
        ("```a````b", "...c....."),
        ("``` ``` ``` x", "...c.......cc"),
    ],
)
def test_what_stands_between_fences_is_code(text, expected):
    assert drawn(text, code_spans(text)) == expected


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        ("a code b", [(2, 6)], "..cccc.."),
        ("a ``` b", [(2, 5)], "..ccc.."),
        ("a```bcd```e", [(5, 6)], "....ccc...."),
        ("a``` x ``` y", [(2, 5)], "..ccc.....cc"),
        ("``````x```", [(0, 3), (3, 6)], "cccccc...."),
        ("ab", [(0, 1), (1, 2)], "cc"),
    ],
)
def test_known_code_is_code_and_its_backticks_are_no_fences(text, known, expected):
    assert drawn(text, code_spans(text, known)) == expected


@pytest.mark.parametrize(
    ("preceding", "expected"),
    [("a", "....c"), ("```a", "c...."), ("```a```", "....c"), ("````", "ccccc"), ("```a````", "....c")],
)
def test_a_fence_before_the_text_may_be_open(preceding, expected):
    assert drawn("x```y", code_spans("x```y", preceding=preceding)) == expected


@given(st.lists(st.sampled_from(["```", "a", "\n", "é "])).map("".join))
@example("```a```b```")
def test_with_plain_fences_it_is_what_splitting_says(text):
    if re.search("`{4}", text):
        return
    expected = ["c" * len(piece) if i % 2 else "." * len(piece) for i, piece in enumerate(text.split("```"))]
    assert drawn(text, code_spans(text)) == "...".join(expected)


def test_a_text_of_fences_alone_takes_as_long_as_any():
    for text in ("`" * 3_000_000, "```a" * 750_000, "``a" * 1_000_000, ("`" * 4 + "a") + "```b" * 700_000):
        started = time.process_time()
        code_spans(text)
        assert time.process_time() - started < 5

"""Splitting R1-style output into reasoning and answer, however the text is cut."""

import random

import pytest

from server.chat.reasoning import ReasoningSplitter, starts_inside, stays_inside


def split(pieces, *, inside):
    splitter = ReasoningSplitter(inside=inside)
    parts = [splitter.push(piece, final=False) for piece in pieces] + [splitter.push("", final=True)]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


CASES = [
    (True, "Let me see.\n</think>\n\nFour.", ("Let me see.", "Four.")),
    (True, "never closed", ("never closed", "")),
    (True, "a < b </thin k> \n\n c\n</think>d", ("a < b </thin k> \n\n c", "d")),
    (True, "</think>at once", ("", "at once")),
    (True, "twice</think>one</think>two", ("twice", "one</think>two")),
    (False, "<think>\nhm\n</think>\n\nyes\n", ("hm", "yes\n")),
    (False, "\n<think>hm</think>yes", ("hm", "yes")),
    (False, "no reasoning, <think> later", ("", "no reasoning, <think> later")),
    (False, "\nkept newline", ("", "\nkept newline")),
    (False, "<thi", ("", "<thi")),
    (False, "", ("", "")),
]


@pytest.mark.parametrize(("inside", "text", "expected"), CASES)
def test_the_parts_are_the_same_however_the_text_arrives(inside, text, expected):
    assert split([text], inside=inside) == expected
    assert split(list(text), inside=inside) == expected
    for seed in range(50):
        cut = random.Random(seed)
        pieces, rest = [], text
        while rest:
            size = cut.randint(1, 6)
            pieces.append(rest[:size])
            rest = rest[size:]
        assert split(pieces, inside=inside) == expected


def test_reasoning_is_given_out_before_it_ends():
    splitter = ReasoningSplitter(inside=True)
    assert splitter.push("first words", final=False) == ("first words", "")


def test_a_prompt_that_ends_with_the_open_marker_starts_inside():
    assert starts_inside("[assistant]<think>\n")
    assert not starts_inside("<think></think>")


def test_a_message_that_is_continued_in_its_reasoning_stays_there():
    assert stays_inside("<think>Let me see, ")
    assert not stays_inside("<think>hm</think>The")
    assert not stays_inside("The")

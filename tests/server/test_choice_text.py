"""Stop strings: found wherever they are spread, cut off whole, and nothing of them given out before."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from engine.loading.resolve import ModelSource
from engine.protocol import FinishReason, SequenceOutput, TokenLogprobs
from server.choice_text import ChoiceText, Delta, find_stop, stop_prefix_length
from server.tokenizer import Tokenizer

if TYPE_CHECKING:
    pass

EOS_ID = 257


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    """One token a byte."""
    return Tokenizer.load(ModelSource(tiny_llama, "tiny"))


def outputs(tokenizer, text, tokens_per_step=1):
    """What an engine would send whose output is `text`, up to max_tokens."""
    ids = tokenizer.encode(text)
    for start in range(0, len(ids), tokens_per_step):
        end = start + tokens_per_step
        reason: FinishReason | None = "length" if end >= len(ids) else None
        yield SequenceOutput("r", 0, ids[start:end], reason)


def run(tokenizer, text, stop, tokens_per_step=1):
    """The deltas up to the end; the caller of ChoiceText stops at a finish_reason, as here."""
    choice = ChoiceText(0, tokenizer.detokenizer(), stop)
    deltas = []
    for output in outputs(tokenizer, text, tokens_per_step):
        if (delta := choice.push(output)) is not None:
            deltas.append(delta)
            if delta.finish_reason is not None:
                break
    return deltas


def joined(deltas):
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


@pytest.mark.parametrize("tokens_per_step", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected", "reason"),
    [
        ("one two three", (), "one two three", "length"),
        ("one two three", ("two",), "one ", "stop"),
        ("one two three", ("o",), "", "stop"),
        ("one two three", ("four",), "one two three", "length"),
        ("one two three", ("three",), "one two ", "stop"),  # at the very end
        ("one two thr", ("three",), "one two thr", "length"),  # held back, never completed
        ("one two three", ("two three", "e t"), "on", "stop"),  # the earliest of several
        ("abab abac", ("abac",), "abab ", "stop"),  # a false start inside the true one
        ("aaaaab", ("aab",), "aaa", "stop"),
        ("x漢字y", ("漢字",), "x", "stop"),
        ("x漢字y", ("字y",), "x漢", "stop"),
        ("漢漢漢字", ("漢字",), "漢漢", "stop"),
        ("a👩‍🚀b", ("\u200d🚀",), "a👩", "stop"),
        ("line\n\nnext", ("\n\n",), "line", "stop"),
    ],
)
def test_text_ends_before_the_first_stop_string(tokenizer, text, stop, expected, reason, tokens_per_step):
    assert joined(run(tokenizer, text, stop, tokens_per_step)) == (expected, reason)


def test_the_earliest_stop_string_wins_within_one_step(tokenizer):
    assert joined(run(tokenizer, "abcdef", ("ef", "bc"), 100)) == ("a", "stop")


def test_what_may_begin_a_stop_string_is_held_back_and_no_more(tokenizer):
    texts = [delta.text for delta in run(tokenizer, "a st stop", ("stop",))]
    assert texts == ["a", " ", "st ", ""]


def test_tokens_that_bring_no_text_come_with_the_next_delta(tokenizer):
    deltas = run(tokenizer, "é漢!", ())
    assert [delta.text for delta in deltas] == ["é", "漢", "!"]
    assert [len(delta.token_ids) for delta in deltas] == [2, 3, 1]


def test_all_tokens_up_to_the_stop_are_reported(tokenizer):
    deltas = run(tokenizer, "one two", (" t",))
    assert [i for delta in deltas for i in delta.token_ids] == tokenizer.encode("one t")


@pytest.mark.parametrize("seed", range(20))
def test_no_part_of_a_stop_string_leaks(tokenizer, seed):
    """Against the definition: the whole text up to the earliest occurrence of any stop string."""
    rng = random.Random(seed)
    text = "".join(rng.choices("ab漢", k=60))
    stop = tuple("".join(rng.choices("ab漢", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 4)))
    starts = [text.find(s) for s in stop if s in text]
    # Of several, the one that is complete first ends the text; the earliest start counts among those complete by then.
    complete = min((text.find(s) + len(s) for s in stop if s in text), default=None)
    deltas = run(tokenizer, text, stop, 1)
    if complete is None:
        assert joined(deltas) == (text, "length")
        return
    end = min(text[:complete].find(s) for s in stop if s in text[:complete])
    assert joined(deltas) == (text[:end], "stop")
    assert end >= min(starts)
    assert all(not delta.text for delta in deltas if delta.finish_reason == "stop" and end == 0)


def test_a_token_that_ends_the_sequence_is_reported_but_not_part_of_the_text(tokenizer):
    choice = ChoiceText(0, tokenizer.detokenizer(skip_special_tokens=False), ())
    [a] = tokenizer.encode("a")
    assert choice.push(SequenceOutput("r", 0, [a])) == Delta(0, "a", [a])
    assert choice.push(SequenceOutput("r", 0, [EOS_ID], "stop", EOS_ID)) == Delta(0, "", [EOS_ID], finish_reason="stop")


def test_an_end_in_the_middle_of_a_character_gives_out_a_replacement(tokenizer):
    choice = ChoiceText(0, tokenizer.detokenizer(), ())
    first, second, _ = tokenizer.encode("漢")
    assert choice.push(SequenceOutput("r", 0, [first])) is None
    delta = choice.push(SequenceOutput("r", 0, [second], "length"))
    assert delta == Delta(0, "\N{REPLACEMENT CHARACTER}", [first, second], finish_reason="length")


def test_a_stop_string_found_only_in_the_flushed_text_still_ends_it(tokenizer):
    choice = ChoiceText(0, tokenizer.detokenizer(), ("\N{REPLACEMENT CHARACTER}",))
    [a], [first, *_] = tokenizer.encode("a"), tokenizer.encode("漢")
    assert choice.push(SequenceOutput("r", 0, [a])) == Delta(0, "a", [a])
    assert choice.push(SequenceOutput("r", 0, [first], "length")) == Delta(0, "", [first], finish_reason="stop")


def test_logprob_reports_carry_the_tokens_places_in_the_text(tokenizer):
    choice = ChoiceText(0, tokenizer.detokenizer(), ())
    offsets = []
    for token_id in tokenizer.encode("a漢b"):
        if (
            delta := choice.push(SequenceOutput("r", 0, [token_id], logprobs=[TokenLogprobs(-1.0, [], [])]))
        ) is not None:
            offsets += [report.text_offset for report in delta.reports]
    assert offsets == [0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [
        ("abc", ("cd",), 1),
        ("abc", ("bcd", "cx"), 2),
        ("abc", ("abcd",), 3),
        ("abc", ("x",), 0),
        ("abc", (), 0),
        ("", ("a",), 0),
    ],
)
def test_the_longest_possible_beginning_is_held(text, stop, length):
    assert stop_prefix_length(text, stop) == length
    assert find_stop(text, stop) is None

"""Stop strings: found wherever they are spread, cut off whole, and nothing of them given out before."""

import random

import pytest

from engine.protocol import SequenceOutput, TokenLogprobs
from server.text.choice_text import ChoiceText, Delta, find_stop, stop_prefix_length
from tests.server.conftest import EOS_ID


@pytest.fixture
def choice_text(tiny_tokenizer):
    """choice_text(stop) -> a ChoiceText with these stop strings."""
    return lambda stop=(), **options: ChoiceText(0, tiny_tokenizer.detokenizer(**options), stop)


@pytest.fixture
def run(choice_text, ids_of):
    """run(text, stop) -> the deltas of an output; as in the server, nothing is pushed after a finish_reason."""

    def deltas(text, stop=(), tokens_per_step=1):
        choice, ids = choice_text(stop), ids_of(text)
        found = []
        for start in range(0, len(ids), tokens_per_step):
            end = start + tokens_per_step
            output = SequenceOutput("r", 0, ids[start:end], "length" if end >= len(ids) else None)
            if (delta := choice.push(output)) is not None:
                found.append(delta)
                if delta.finish_reason is not None:
                    break
        return found

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
def test_text_ends_before_the_first_stop_string(run, text, stop, expected, reason, tokens_per_step):
    assert joined(run(text, stop, tokens_per_step)) == (expected, reason)


def test_the_earliest_stop_string_wins_within_one_step_and_is_named(run):
    deltas = run("abcdef", ("ef", "bc"), 100)
    assert joined(deltas) == ("a", "stop")
    assert deltas[-1].stop_string == "bc"


def test_no_stop_string_is_named_where_none_ended_the_text(run):
    assert {delta.stop_string for delta in run("one thr", ("three",))} == {None}


def test_what_may_begin_a_stop_string_is_held_back_and_no_more(run):
    texts = [delta.text for delta in run("a st stop", ("stop",))]
    assert texts == ["a", " ", "st ", ""]


def test_tokens_that_bring_no_text_come_with_the_next_delta(run):
    deltas = run("é漢!", ())
    assert [delta.text for delta in deltas] == ["é", "漢", "!"]
    assert [len(delta.token_ids) for delta in deltas] == [2, 3, 1]


def test_all_tokens_up_to_the_stop_are_reported(run, ids_of):
    deltas = run("one two", (" t",))
    assert [i for delta in deltas for i in delta.token_ids] == ids_of("one t")


@pytest.mark.parametrize("seed", range(20))
def test_text_is_cut_as_soon_as_any_stop_string_is_complete(run, seed):
    """By definition: in the shortest beginning of the text that has a stop string, before the earliest of them."""
    rng = random.Random(seed)
    text = "".join(rng.choices("ab漢", k=60))
    stop = tuple("".join(rng.choices("ab漢", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 4)))
    beginnings = [text[:end] for end in range(len(text) + 1)]
    found = next((b for b in beginnings if any(s in b for s in stop)), None)
    expected = (text, "length") if found is None else (found[: min(found.find(s) for s in stop if s in found)], "stop")
    assert joined(run(text, stop)) == expected


def test_pieces_join(run):
    first, *rest = run("é漢 stop", ("stop",))
    assert [first.is_first, *(delta.is_first for delta in rest)] == [True] + [False] * len(rest)
    for delta in rest:
        first.extend(delta)
    assert [first] == run("é漢 stop", ("stop",), 100)


def test_a_token_that_ends_the_sequence_is_reported_but_not_part_of_the_text(choice_text, ids_of):
    choice = choice_text(skip_special_tokens=False)
    [a] = ids_of("a")
    assert choice.push(SequenceOutput("r", 0, [a])) == Delta(0, "a", [a], is_first=True)
    assert choice.push(SequenceOutput("r", 0, [EOS_ID], "stop", EOS_ID)) == Delta(0, "", [EOS_ID], finish_reason="stop")


def test_an_end_in_the_middle_of_a_character_gives_out_a_replacement(choice_text, ids_of):
    choice = choice_text()
    first, second, _ = ids_of("漢")
    assert choice.push(SequenceOutput("r", 0, [first])) is None
    delta = choice.push(SequenceOutput("r", 0, [second], "length"))
    assert delta == Delta(0, "\N{REPLACEMENT CHARACTER}", [first, second], finish_reason="length", is_first=True)


def test_a_stop_string_found_only_in_the_flushed_text_still_ends_it(choice_text, ids_of):
    broken = "\N{REPLACEMENT CHARACTER}"
    choice = choice_text((broken,))
    [a], [first, *_] = ids_of("a"), ids_of("漢")
    assert choice.push(SequenceOutput("r", 0, [a])) == Delta(0, "a", [a], is_first=True)
    assert choice.push(SequenceOutput("r", 0, [first], "length")) == Delta(
        0, "", [first], finish_reason="stop", stop_string="\N{REPLACEMENT CHARACTER}"
    )


def test_logprob_reports_carry_the_tokens_places_in_the_text(choice_text, ids_of):
    choice = choice_text()
    offsets = []
    for token_id in ids_of("a漢b"):
        delta = choice.push(SequenceOutput("r", 0, [token_id], logprobs=[TokenLogprobs(-1.0, [], [])]))
        offsets += [report.text_offset for report in delta.reports] if delta else []
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

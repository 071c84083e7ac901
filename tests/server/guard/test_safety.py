"""Which labels flag a text, from logits; and which classifiers cannot guard."""

import math

import pytest

from engine.errors import ConfigError
from server.guard.safety import Safety


def logits(*shares):
    return [math.log(share) for share in shares]


@pytest.mark.parametrize(
    ("labels", "shares", "hits"),
    [
        (("safe", "harm"), (0.6, 0.4), ()),
        (("safe", "harm"), (0.4, 0.6), ("harm",)),
        (("Safe", "a", "b"), (0.4, 0.25, 0.35), ("b",)),  # together they do
        (("a", "SAFE", "b"), (0.3, 0.55, 0.15), ()),
        (("a", "b"), (0.7, 0.3), ("a",)),
        (("a", "b", "c"), (0.3, 0.3, 0.4), ()),  # none means safe, and none alone says enough
    ],
)
def test_labels_that_exclude_each_other(labels, shares, hits):
    verdict = Safety().judge(labels, "softmax", logits(*shares))
    assert verdict.hits == hits
    assert verdict.scores == pytest.approx(dict(zip(labels, shares, strict=True)))


def test_labels_that_are_each_a_yes_or_no_flag_alone_the_likeliest_first():
    def odds(share):
        return math.log(share / (1 - share))

    verdict = Safety().judge(("rude", "safe", "wild", "mild"), "sigmoid", [odds(0.6), odds(0.9), odds(0.8), odds(0.4)])
    assert verdict.hits == ("wild", "rude")


def test_the_threshold_and_the_safe_labels_are_the_settings():
    assert Safety((), 0.9).judge(("safe", "harm"), "softmax", logits(0.2, 0.8)).hits == ()
    assert Safety(("fine", "odd")).judge(("fine", "odd", "bad"), "softmax", logits(0.3, 0.3, 0.4)).hits == ()
    assert Safety(("fine",)).judge(("fine", "safe"), "softmax", logits(0.3, 0.7)).hits == ("safe",)


@pytest.mark.parametrize(
    ("safe", "labels", "activation", "text"),
    [
        ((), (), "softmax", "no classification head"),
        ((), ("a", "b"), "softmax", "of a, b, name those that mean it with --guard-safe-label"),
        (("c",), ("a", "b"), "softmax", "--guard-safe-label is c; the labels of --guard MODEL are a, b"),
        (("a", "b"), ("a", "b"), "softmax", "it would flag nothing"),
        ((), ("safe",), "sigmoid", "it would flag nothing"),
        ((), ("safe", "harm"), "none", "regression"),
    ],
)
def test_a_classifier_that_cannot_guard_is_refused(safe, labels, activation, text):
    with pytest.raises(ConfigError, match="--guard") as caught:
        Safety(safe).check("MODEL", labels, activation)
    assert text in str(caught.value)


def test_a_classifier_of_harms_alone_can_guard():
    Safety().check("MODEL", ("toxic", "obscene"), "sigmoid")

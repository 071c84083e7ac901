"""How many may decode beside live sequences, as it is learnt."""

import pytest

from engine.decode_costs import _FRESH, _KNOWN, DecodeCosts


def learn(costs, times=1, **seconds):
    for _ in range(times):
        for name, value in seconds.items():
            costs.observe(int(name[1:]), value)


def test_nobody_before_the_live_ones_were_measured_alone():
    costs = DecodeCosts(0.1)
    assert (costs.beside(4), costs.seconds_left(4, 0)) == (0, 0.0)
    learn(costs, n8=0.020)
    assert costs.beside(4) == 0
    learn(costs, n4=0.010)
    assert costs.beside(4) == 0  # (0.020 - 0.010) / 4 each is more than a tenth
    assert costs.seconds_left(4, 0) == pytest.approx(0.001)


def test_as_many_as_fit_by_what_is_known_and_the_rest_is_for_prompts():
    costs = DecodeCosts(0.5)
    learn(costs, n4=0.010, n14=0.020)
    assert costs.beside(4) == 5
    assert costs.seconds_left(4, 5) == pytest.approx(0, abs=1e-9)
    assert costs.seconds_left(4, 2) == pytest.approx(0.003)
    learn(costs, n9=0.0142)
    assert costs.beside(4) == 5
    assert costs.seconds_left(4, 5) == pytest.approx(0.0008)


def test_one_more_is_tried_beyond_what_is_known():
    costs = DecodeCosts(0.1)
    learn(costs, n4=0.010)
    assert (costs.beside(4), costs.seconds_left(4, 1)) == (1, 0.0)
    learn(costs, n5=0.0101)
    assert costs.beside(4) == 2


def test_a_share_of_nothing_is_nobody():
    costs = DecodeCosts(0.0)
    learn(costs, n4=0.010, n5=0.010)
    assert (costs.beside(4), costs.seconds_left(4, 0)) == (0, 0.0)


def test_the_live_ones_are_measured_alone_again_and_again():
    costs = DecodeCosts(0.1)
    learn(costs, n4=0.010)
    for _ in range(_FRESH - 1):
        learn(costs, n5=0.0102)
        assert costs.beside(4) == 2
    learn(costs, n5=0.0102)
    assert costs.beside(4) == 0


def test_what_was_slow_once_is_tried_again():
    costs = DecodeCosts(0.1)
    learn(costs, n5=0.5)
    for _ in range(_KNOWN):
        learn(costs, n4=0.010)
        assert costs.beside(4) == 0
    learn(costs, n4=0.010)
    assert costs.beside(4) == 1
    learn(costs, n5=0.0102)  # which replaces what is long past
    assert costs.beside(4) == 2

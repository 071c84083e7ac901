from __future__ import annotations

import math

import pytest

from training.schedule import learning_rate


def test_the_rate_rises_evenly_then_falls_by_half_a_cosine() -> None:
    rates = [learning_rate(step, peak=2.0, warmup_steps=4, total_steps=12) for step in range(1, 13)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[4:] == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(8)])
    assert all(rate > 0 for rate in rates)


def test_the_article_s_schedule() -> None:
    rates = {
        step: learning_rate(step, peak=3e-5, warmup_steps=2000, total_steps=100_000)
        for step in (1, 1000, 2000, 51_001, 100_000)
    }
    assert rates[1] == pytest.approx(1.5e-8)
    assert rates[1000] == pytest.approx(1.5e-5)
    assert rates[2000] == 3e-5
    assert rates[51_001] == pytest.approx(1.5e-5)  # half of the cosine's 98,000 steps
    assert 0 < rates[100_000] < 1e-13


def test_without_warm_up_it_begins_at_the_peak_and_a_run_may_be_warm_up_alone() -> None:
    assert learning_rate(1, peak=1.0, warmup_steps=0, total_steps=10) == 1.0
    assert learning_rate(10, peak=1.0, warmup_steps=10, total_steps=10) == 1.0

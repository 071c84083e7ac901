"""Deadlines: who ends unfinished, and when."""

import pytest

from tests.support.stepping import add, make_batcher, of, step


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_deadline_ends_a_sequence_in_every_state(steps):
    batcher = make_batcher(tokens=8)
    add(batcher, of("late", 20, deadline=5.0), of("other", 4))
    for _ in range(steps):
        step(batcher)
    assert batcher.expire(4.9) == []
    (output,) = batcher.expire(5.0)
    assert (output.request_id, output.finish_reason) == ("late", "timeout")
    batcher.abort("other")
    batcher.check_idle()
    assert batcher.expire(100.0) == []


def test_a_deadline_for_the_start_spares_what_has_started():
    batcher = make_batcher(batch=1)
    add(batcher, of("first", start_deadline=1.0), of("second", start_deadline=1.0))
    step(batcher)
    assert [output.request_id for output in batcher.expire(2.0)] == ["second"]
    assert batcher.stats().num_running == 1

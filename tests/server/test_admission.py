"""A full queue refuses, says when to come back, and gets everything back."""

import contextlib

import pytest

from engine.errors import OverloadedError
from server.admission import Admission, estimate_tokens


def test_requests_and_tokens_are_bounded_and_an_empty_queue_takes_any():
    admission = Admission(3, 100)
    first = admission.admit(5, 1000)
    with pytest.raises(OverloadedError, match="5 prompts with about 1000 tokens wait already"):
        admission.admit(1, 1)
    first.close()
    tickets = [admission.admit(1, 40), admission.admit(1, 40)]
    with pytest.raises(OverloadedError, match="100 tokens may"):
        admission.admit(1, 40)
    tickets.append(admission.admit(1, 20))
    with pytest.raises(OverloadedError, match="and 3 may"):
        admission.admit(1, 0)
    for ticket in tickets:
        ticket.close()
        ticket.close()
    assert (admission.num_prompts, admission.num_tokens) == (0, 0)


def test_a_key_of_which_nothing_waits_gets_in_beside_one_that_fills_the_queue():
    admission = Admission(4, 1000)
    flood = [admission.admit(1, 10, b"flood") for _ in range(4)]
    with pytest.raises(OverloadedError):
        admission.admit(1, 10, b"flood")
    polite = admission.admit(1, 10, b"polite")
    for tenant in (b"polite", b"third"):  # one of its own waits already; the reserve is used up
        with pytest.raises(OverloadedError):
            admission.admit(1, 10, tenant)
    polite.start()
    admission.admit(1, 10, b"third").close()
    for ticket in (*flood, polite):
        ticket.close()
    assert not admission.num_prompts_of


def test_idle_time_is_not_taken_for_a_slow_queue():
    time = [0.0]
    admission = Admission(100, 10**9, clock=lambda: time[0])
    ticket = admission.admit(4, 4)
    for time[0] in (1.0, 2.0, 3.0, 4.0):
        ticket.start()
    time[0] = 1000.0
    waiting = [admission.admit(1, 1) for _ in range(20)]
    assert admission.retry_after() == 1.0
    for ticket in waiting[:4]:
        time[0] += 0.5
        ticket.start()
    assert admission.retry_after() < 10


def test_what_has_started_waits_no_longer():
    admission = Admission(10, 100)
    ticket = admission.admit(3, 10)
    ticket.resize(31)
    left = []
    for _ in range(3):
        ticket.start()
        left.append((admission.num_prompts, admission.num_tokens))
    assert left == [(2, 20), (1, 10), (0, 0)]
    ticket.start()
    ticket.close()
    assert (admission.num_prompts, admission.num_tokens) == (0, 0)


def test_a_ticket_is_closed_by_its_with_statement():
    admission = Admission(10, 100)
    with contextlib.suppress(ZeroDivisionError), admission.admit(1, 1):
        assert admission.num_prompts == 1
        raise ZeroDivisionError
    assert (admission.num_prompts, admission.num_tokens) == (0, 0)


def test_retry_after_is_what_the_queue_takes_at_the_rate_of_its_starts():
    times = iter([0.0, 2.0, 4.0, 6.0, 8.0] + [8.0] * 10)
    admission = Admission(100, 10**9, clock=lambda: next(times))
    assert admission.retry_after() == 1.0
    tickets = [admission.admit(1, 1) for _ in range(15)]
    for ticket in tickets[:5]:
        ticket.start()  # one in two seconds
    assert admission.retry_after() == pytest.approx(10 * 8 / 5)
    more = [admission.admit(1, 1) for _ in range(85)]
    assert admission.retry_after() == 60.0
    for ticket in [*tickets, *more]:
        ticket.close()
    assert admission.retry_after() == 1.0


def test_tokens_are_estimated_from_letters_and_counted_from_ids():
    assert estimate_tokens([1, 2, 3]) == 3
    assert 1 <= estimate_tokens("") <= estimate_tokens("a" * 400) <= 400

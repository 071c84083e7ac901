"""What one client may ask in a minute and at a time, by a clock that the tests turn."""

from __future__ import annotations

import pytest

from engine.errors import RateLimitError
from server.rate_limits import Allowance, Clients, RateLimits, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def clients(clock: Clock) -> Clients:
    return Clients(clock=clock, max_clients=3)


def begin(clients: Clients, limits: RateLimits, identity: str = "a") -> Allowance:
    allowance = clients.allowance(identity, "none", limits)
    allowance.begin()
    return allowance


def named(allowance: Allowance) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in allowance.headers()}


def test_requests_of_a_minute_come_back_evenly(clients: Clients, clock: Clock) -> None:
    limits = RateLimits(requests_per_minute=3)
    for left in (2, 1, 0):
        allowance = begin(clients, limits)
        assert named(allowance) == {
            "limit-requests": "3",
            "remaining-requests": str(left),
            "reset-requests": duration(20 * (3 - left)),
        }
    with pytest.raises(RateLimitError, match=r"3 requests a minute: 0 are left. Try again in 20s") as info:
        begin(clients, limits)
    assert info.value.retry_after == pytest.approx(20)
    begin(clients, limits, "another")
    clock.now += 20.001
    begin(clients, limits)
    with pytest.raises(RateLimitError):
        begin(clients, limits)
    clock.now += 3600
    assert named(begin(clients, limits))["remaining-requests"] == "2"  # no more than a minute's are kept


def test_running_requests_are_counted_until_they_end(clients: Clients) -> None:
    limits = RateLimits(max_requests=2)
    first = begin(clients, limits)
    begin(clients, limits)
    with pytest.raises(RateLimitError, match="2 requests at a time") as info:
        begin(clients, limits)
    assert info.value.retry_after == 1
    clients.allowance("a", "none", limits).end(0)  # it did not begin
    with pytest.raises(RateLimitError):
        begin(clients, limits)
    first.end(0)
    assert not begin(clients, limits).headers()


def test_tokens_are_estimated_and_settled(clients: Clients, clock: Clock) -> None:
    limits = RateLimits(tokens_per_minute=600)
    allowance = begin(clients, limits)
    allowance.reserve(500)
    assert named(allowance) == {"limit-tokens": "600", "remaining-tokens": "100", "reset-tokens": "50s"}
    with pytest.raises(RateLimitError, match=r"100 are left, and this one takes about 200. Try again in 10s"):
        begin(clients, limits).reserve(200)
    allowance.end(50)
    assert named(allowance)["remaining-tokens"] == "550"


def test_a_client_that_overdraws_waits_the_longer(clients: Clients, clock: Clock) -> None:
    """Over time nobody gets more than the rate, however long answers are that nobody could estimate."""
    limits = RateLimits(tokens_per_minute=60)
    allowance = begin(clients, limits)
    allowance.reserve(1_000_000)  # a full bucket lets any request in: it could never come otherwise
    allowance.end(240)
    assert named(allowance)["remaining-tokens"] == "0"
    with pytest.raises(RateLimitError) as info:
        begin(clients, limits)
    assert info.value.retry_after == pytest.approx(181)
    clock.now += 181
    begin(clients, limits)


def test_what_is_refused_takes_nothing(clients: Clients, clock: Clock) -> None:
    limits = RateLimits(1, 10, 100)
    begin(clients, limits)
    for _ in range(50):
        with pytest.raises(RateLimitError):
            begin(clients, limits)
    allowance = begin(clients, limits, "another")
    allowance.reserve(60)
    allowance.end(60)
    with pytest.raises(RateLimitError):
        begin(clients, limits, "another").reserve(60)
    assert named(clients.allowance("another", "none", limits))["remaining-requests"] == "9"
    assert named(clients.allowance("a", "none", limits)) == {
        "limit-requests": "10",
        "remaining-requests": "9",
        "reset-requests": "6s",
        "limit-tokens": "100",
        "remaining-tokens": "100",
        "reset-tokens": "0ms",
    }


def test_clients_are_forgotten_but_not_what_they_run(clients: Clients) -> None:
    limits = RateLimits(max_requests=1, requests_per_minute=1)
    begin(clients, limits, "running")
    for number in range(1000):
        begin(clients, limits, str(number)).end(0)
        assert len(clients) <= 4
    with pytest.raises(RateLimitError, match="at a time"):
        begin(clients, limits, "running")


def test_a_limit_that_changes_holds_at_once(clients: Clients) -> None:
    begin(clients, RateLimits(requests_per_minute=1000))
    assert named(clients.allowance("a", "none", RateLimits(requests_per_minute=5)))["remaining-requests"] == "5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (1.5, "1.5s"), (59.9996, "1m0s"), (360, "6m0s"), (61.25, "1m1.25s")],
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text

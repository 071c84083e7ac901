"""A full queue refuses before any work is done, says when to come back, and gets everything back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import OverloadedError
from server.admission import Admission, estimate_tokens
from server.config import ServerConfig
from tests.server.conftest import CHAT, COMPLETIONS, check_error, text_of

if TYPE_CHECKING:
    from tests.server.conftest import Api

LONG = {"prompt": "abc", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


def bound(api: Api, max_requests: int = 100, max_tokens: int = 100_000, **config: Any) -> Admission:
    """Give a running API new bounds; its admission."""
    admission = Admission(max_requests, max_tokens)
    state = dataclasses.replace(api.app.state.server, admission=admission, config=ServerConfig(**config))
    api.app.state.server = state
    return admission


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
    assert (admission.num_requests, admission.num_tokens) == (0, 0)


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
    assert not admission.num_requests_of


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
        left.append((admission.num_requests, admission.num_tokens))
    assert left == [(2, 20), (1, 10), (0, 0)]
    ticket.start()
    ticket.close()
    assert (admission.num_requests, admission.num_tokens) == (0, 0)


def test_a_ticket_is_closed_by_its_with_statement_unless_it_was_kept():
    admission = Admission(10, 100)
    with admission.admit(1, 1):
        pass
    assert admission.num_requests == 0
    with contextlib.suppress(ZeroDivisionError), admission.admit(1, 1) as ticket:
        ticket.keep()
        raise ZeroDivisionError
    assert admission.num_requests == 0
    with admission.admit(1, 1) as ticket:
        kept = ticket.keep()
    assert admission.num_requests == 1
    with kept:
        pass
    assert admission.num_requests == 0


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


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_full_queue_answers_429_and_when_to_come_back(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    admission = bound(api, max_requests=1)
    with admission.admit(1, 1):
        monkeypatch.setattr(type(api.tokenizer), "encode", None)  # no work is done on what is refused
        body = {"prompt": "hi"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "hi"}]}
        response = await api.post(path, **body)
        check_error(response, 429, type="rate_limit_error", code="rate_limit_exceeded")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        monkeypatch.undo()
    assert (await api.complete("hi", max_tokens=1))["choices"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": "hi", "max_tokens": 10**6}),
        (COMPLETIONS, {"prompt": [1] * 5000}),
        (COMPLETIONS, {"prompt": [10**8]}),
        (COMPLETIONS, {"prompt": "x" * 1_000_000}),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10**6}),
    ],
)
async def test_what_can_never_fit_is_refused_as_such_while_the_queue_is_full(api: Api, path: str, body: Any) -> None:
    with bound(api, max_requests=1).admit(1, 1):
        check_error(await api.post(path, **body), 400)


async def test_started_requests_make_room_and_every_exit_gives_back(api: Api) -> None:
    admission = bound(api, max_requests=4)
    running = [asyncio.create_task(api.stream(COMPLETIONS, **LONG)) for _ in range(2)]

    async def both_run() -> bool:
        return await api.metric("requests_running") == 2 and admission.num_requests == 0

    await api.until(both_run)
    assert (await api.post(COMPLETIONS, prompt="x" * 100_000)).status_code == 400
    assert (await api.post(COMPLETIONS, prompt="x", max_tokens=10**6)).status_code == 400
    assert admission.num_requests == 0
    assert len(await api.stream(COMPLETIONS, prompt=["a", "b"], max_tokens=2)) > 0
    assert admission.num_requests == 0
    for task in running:
        assert text_of(await task)
    assert (admission.num_requests, admission.num_tokens) == (0, 0)


async def test_many_more_than_fit_are_answered_or_refused_and_nothing_is_left(api: Api) -> None:
    admission = bound(api, max_requests=8)
    responses = await asyncio.gather(*(api.post(COMPLETIONS, prompt="hi", max_tokens=20) for _ in range(120)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    assert (admission.num_requests, admission.num_tokens) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by", ["request", "server"])
async def test_a_request_past_its_time_is_ended(api: Api, by: str, *, stream: bool) -> None:
    bound(api, **({"request_timeout": 0.05} if by == "server" else {}))
    body = {**LONG, "max_tokens": 500} | ({"timeout": 0.05} if by == "request" else {})
    response = await api.post(COMPLETIONS, stream=stream, **body)
    if stream:
        assert '"code":"request_timeout"' in response.text
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        check_error(response, 408, type="timeout_error", code="request_timeout")
    await api.until_idle()


async def test_a_request_that_waits_too_long_is_refused(api: Api) -> None:
    running = [asyncio.create_task(api.stream(COMPLETIONS, **{**LONG, "max_tokens": 450})) for _ in range(16)]

    async def full() -> bool:
        return await api.metric("requests_running") == 16

    await api.until(full)
    bound(api, queue_timeout=0.05)  # only now: on a busy machine the others may wait longer
    response = await api.post(COMPLETIONS, prompt="late", max_tokens=1)
    check_error(response, 429, code="rate_limit_exceeded")
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await api.until_idle()

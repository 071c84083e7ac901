"""What a full queue refuses is refused before its body is read; and nothing else is."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from engine.errors import OverloadedError
from server.admission import Admission
from server.http.gate import ROUTES
from server.http.overload import ADMITTING_PATHS
from tests.server.conftest import check_error

WITHOUT_A_PLACE = {  # POSTed, and not the engine's
    *("/ping", "/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel", "/v1/responses/{response_id}/cancel"),
}


def unread() -> httpx.AsyncByteStream:
    class Unread(httpx.AsyncByteStream):
        async def __aiter__(self):
            pytest.fail("the body is read")
            yield b""

    return Unread()


def fill(api, tenant: bytes = b"") -> None:
    """Let in all that may wait, and what a new tenant may add."""
    admission: Admission = api.app.state.server.admission
    admission.admit(admission.max_prompts, 1, tenant)
    admission.admit(max(1, admission.max_prompts // 4), 1, b"another")


async def test_whatever_would_take_a_place_is_refused_unread(serve) -> None:
    api = await serve()
    fill(api)
    for path in sorted(ADMITTING_PATHS):
        response = await api.http.post(path, content=unread())
        assert response.status_code == 429, path
        assert int(response.headers["Retry-After"]) >= 1
        assert response.headers["x-request-id"]
    assert await api.metric("requests_refused_total", reason="queue_full") == len(ADMITTING_PATHS)
    check_error(await api.http.post("/v1/completions"), 429, type="rate_limit_error")


async def test_every_route_is_known_to_take_a_place_or_not(serve) -> None:
    api = await serve()
    posted = {route.path for route in api.app.state.routes if "POST" in route.methods}
    assert posted == ADMITTING_PATHS | WITHOUT_A_PLACE
    assert posted <= ROUTES.keys()
    fill(api)
    for path in WITHOUT_A_PLACE:
        assert (await api.http.post(path)).status_code != 429, path
    assert (await api.http.get("/v1/models")).status_code == 200


async def test_a_request_is_refused_unread_only_if_the_smallest_would_be(serve) -> None:
    api = await serve()
    admission: Admission = api.app.state.server.admission
    admission.admit(admission.max_prompts - 1, 1)
    assert (await api.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})).status_code == 200
    response = await api.http.post("/v1/completions", json={"prompt": ["a", "b", "c"], "max_tokens": 1})
    check_error(response, 429, type="rate_limit_error")  # once its body said that it is three


async def test_without_an_engine_nothing_is_read(serve) -> None:
    api = await serve()
    api.client.info = None
    response = await api.http.post("/v1/completions", content=unread())
    check_error(response, 503, type="service_unavailable_error")
    assert response.headers["Retry-After"] == "1"
    assert (await api.http.post("/detokenize", json={"tokens": [97]})).status_code == 200
    api.client.info = api.engine.info


@pytest.mark.parametrize(("num_waiting", "tenant"), [(0, b"a"), (3, b"a"), (4, b"a"), (4, b"b"), (5, b"b")])
def test_a_check_says_what_admit_would(num_waiting: int, tenant: bytes) -> None:
    admission = Admission(4, 100)
    for number in range(num_waiting):
        admission.admit(1, 1, b"a" if number < 4 else b"b")
    refusals = []
    for ask in (admission.check, admission.admit):
        try:
            ask(1, 1, tenant)
        except OverloadedError as error:
            refusals.append(str(error))
        else:
            refusals.append("")
    assert refusals[0] == refusals[1]


async def test_those_who_ask_for_metrics_at_the_same_time_share_one_writing(serve, monkeypatch) -> None:
    api = await serve()
    written = []
    collect = api.app.state.server.metrics.exposed.collect
    monkeypatch.setattr(api.app.state.server.metrics.exposed, "collect", lambda: written.append(0) or collect())
    answers = await asyncio.gather(*[api.http.get("/metrics") for _ in range(20)])
    assert {answer.status_code for answer in answers} == {200}
    assert 1 <= len(written) < 10
    before = len(written)
    assert (await api.http.get("/metrics")).status_code == 200
    assert len(written) == before + 1

"""Each request's id, its line in the log, and the metrics of HTTP."""

import logging
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.config import ServerConfig
from server.http.access import Access, AccessLog
from server.http.api_keys import ApiKeys, Caller
from server.observe.families import Families
from server.observe.http_metrics import HttpMetrics
from tests.server.conftest import CHAT, COMPLETIONS

KEY = "sk-secret"


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "server.http.access"]


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO, "server.http.access")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_leaves_one_line_without_its_text(api, caplog, stream):
    body = {"max_tokens": 3, "ignore_eos": True, "n": 2, "stream": stream}
    response = await api.http.post(COMPLETIONS, json={"prompt": "my diary", **body}, headers={"X-Request-ID": "a-1"})
    assert response.headers["x-request-id"] == "a-1"
    [line] = lines(caplog)
    form = r'a-1 [\d.]+ key=none "POST /v1/completions" 200 total=[\d.]+s prompt=8 output=6 ttft=[\d.]+s finish=length'
    assert re.fullmatch(form, line), line


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "a\x7fb", "café"])
async def test_an_id_that_could_forge_a_line_is_replaced(api, sent):
    response = await api.http.get("/v1/models", headers={"X-Request-ID": sent.encode()})
    assert re.fullmatch(r"req-[0-9a-f]{32}", response.headers["x-request-id"])


async def test_no_key_no_query_and_no_control_character_reaches_the_log(serve, caplog):
    api = await serve(keys=ApiKeys([Caller.of_key(KEY, 1.0, "laptop")]))
    good = {"Authorization": f"Bearer {KEY}"}
    await api.http.get(f"/v1/models?api_key={KEY}", headers=good)
    await api.http.get(f"/v1/models?api_key={KEY}")
    await api.http.get("/no%0Asuch%1b%22/" + "x" * 500, headers=good)
    found, refused, unknown = lines(caplog)
    assert ' key=laptop "GET /v1/models" 400 ' in found  # no route has such a query
    assert ' key=- "GET /v1/models" 401 ' in refused
    assert r'"GET /no\nsuch\x1b\x22/xxx' in unknown
    assert all(len(line) < 300 and line.isprintable() and KEY not in line for line in (found, refused, unknown))


async def test_probes_are_logged_at_debug_only(api, caplog):
    for path in ("/health", "/livez", "/metrics", "/load", "/ping"):
        await api.http.get(path)
    assert lines(caplog) == []
    caplog.set_level(logging.DEBUG, "server.http.access")
    await api.http.get("/livez")
    assert len(lines(caplog)) == 1


async def test_a_flood_of_refusals_does_not_fill_the_log(api, caplog, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("server.http.access.time.monotonic", lambda: now)
    for _ in range(100):
        await api.http.get("/nothing")
    assert len(lines(caplog)) == 20
    now += 1
    await api.http.get("/nothing")
    assert lines(caplog)[20] == "80 more refusals in a second were not logged"
    assert len(lines(caplog)) == 22


async def test_the_access_log_can_be_off(serve, caplog):
    api = await serve(config=ServerConfig(access_log="off"))
    await api.complete("a", max_tokens=1)
    assert lines(caplog) == []


async def test_answers_are_counted_by_route_method_and_status(serve):
    api = await serve(keys=ApiKeys([Caller.of_key(KEY, 1.0, "k")]))
    api.http.headers["Authorization"] = f"Bearer {KEY}"
    await api.complete("a", max_tokens=1)
    await api.http.post(COMPLETIONS, json={"prompt": ""})
    await api.http.post(CHAT, json={}, headers={"Authorization": "Bearer wrong"})
    await api.http.get("/v1/models/x/y")
    await api.http.get("/v1/models/z")
    await api.http.request("BREW", "/coffee/1")
    await api.http.get("/coffee/2")
    await api.http.delete("/v1/models")

    async def count(route, method, status):
        return await api.metric("http_requests_total", route=route, method=method, status=str(status))

    assert await count(COMPLETIONS, "POST", 200) == 1
    assert await count(COMPLETIONS, "POST", 400) == 1
    assert await count(CHAT, "POST", 401) == 1
    assert await count("/v1/models/{name:path}", "GET", 404) == 2
    assert await count("unknown", "unknown", 404) == 1
    assert await count("unknown", "GET", 404) == 1
    assert await count("/v1/models", "DELETE", 405) == 1
    assert await api.metric("http_requests_in_flight") == 1  # the one that asks


async def test_bodies_are_measured_in_and_out_with_and_without_an_announced_length(api):
    body = b'{"prompt": "a", "max_tokens": 20, "ignore_eos": true, "stream": true}'

    async def chunks():
        yield body[:10]
        yield body[10:]

    answers = [
        await api.http.post(COMPLETIONS, content=content, headers={"Content-Type": "application/json"})
        for content in (body, chunks())
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert await api.metric("http_request_body_bytes_sum", route=COMPLETIONS) == 2 * len(body)
    sent = sum(len(answer.content) for answer in answers)
    assert await api.metric("http_response_body_bytes_sum", route=COMPLETIONS) == sent
    assert await api.metric("http_request_duration_seconds_count", route=COMPLETIONS) == 2


async def test_an_unexpected_error_is_counted_and_answered_with_its_id(api, monkeypatch, caplog):
    monkeypatch.setattr(api.app.state.server.load, "snapshot", lambda: 1 / 0)
    response = await api.http.get("/load", headers={"X-Request-ID": "boom"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "boom")
    assert await api.metric("http_requests_total", route="/load", status="500") == 1


def test_what_a_connection_refuses_is_counted_and_logged(caplog):
    registry = CollectorRegistry()
    Access(HttpMetrics(Families(registry, "m")), AccessLog(is_on=True), ()).refused(431, "10.0.0.1", 100)
    series = 'http_requests_total{method="unknown",model_name="m",route="unknown",status="431"} 1.0'
    assert series in generate_latest(registry).decode()
    [line] = lines(caplog)
    assert '10.0.0.1 key=- "-" 431 ' in line


async def test_a_path_may_end_with_a_slash_and_no_redirect_is_sent(api):
    for path in ("/v1/models/", "/health/", "/load/"):
        assert (await api.http.get(path, headers={"Host": "evil"})).status_code == 200
    response = await api.http.post(f"{COMPLETIONS}/", json={"prompt": "a", "max_tokens": 1})
    assert response.status_code == 200

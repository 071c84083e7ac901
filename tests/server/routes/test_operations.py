"""The probes and /metrics."""

import asyncio
from importlib.metadata import version

import pytest

from server.engine_client import EngineState
from tests.server.conftest import CHAT, COMPLETIONS, check_error, running

PROBES = ("/livez", "/readyz", "/startupz", "/health")


@pytest.mark.parametrize(
    ("state", "has_info", "is_draining", "statuses"),
    [
        (EngineState.STARTING, False, False, [200, 503, 503, 503]),
        (EngineState.READY, True, False, [200, 200, 200, 200]),
        (EngineState.RESTARTING, False, False, [200, 503, 200, 503]),
        (EngineState.READY, True, True, [200, 503, 200, 503]),
        (EngineState.STOPPED, False, False, [503, 503, 200, 503]),
    ],
)
async def test_each_probe_asks_another_question(api, monkeypatch, state, has_info, is_draining, statuses):
    monkeypatch.setattr(api.client, "state", state)
    monkeypatch.setattr(api.app.state.server.health, "is_draining", is_draining)
    if not has_info:
        monkeypatch.setattr(api.client, "info", None)
    for method in ("GET", "HEAD"):
        responses = [await api.http.request(method, path) for path in PROBES]
        assert [response.status_code for response in responses] == statuses
        assert all(("retry-after" in response.headers) == (response.status_code == 503) for response in responses)
    said = {(await api.http.get(path)).json()["status"] for path in PROBES}
    assert said == {"draining" if is_draining else state}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_is_closed_ends_what_runs_and_refuses_what_comes(api, stream):
    """What the server does once its drain time is over."""
    running = asyncio.create_task(api.post(COMPLETIONS, max_tokens=490, ignore_eos=True, stream=stream))

    async def busy():
        return await api.metric("requests_running") == 1

    await api.until(busy)
    api.client.close()
    broken_off = await running
    assert (broken_off.status_code, "server_is_overloaded" in broken_off.text) == (200 if stream else 503, True)
    check_error(await api.post(COMPLETIONS), 503, code="server_is_overloaded")
    assert await api.metric("requests_refused_total", reason="draining") == 1
    assert await api.metric("sequences_finished_total", finished_reason="error") == 1
    assert await api.metric("sequences_finished_total", finished_reason="abort") == 0


async def test_before_the_engine_is_ready_requests_get_503_with_retry_after(serve):
    api = await serve(run=False)
    for path in (COMPLETIONS, CHAT):
        for stream in (False, True):
            response = await api.post(path, stream=stream)
            check_error(response, 503, type="service_unavailable_error", code="server_is_overloaded")
            assert int(response.headers["retry-after"]) >= 1
    assert await api.metric("requests_refused_total", reason="unavailable") == 4
    health = await api.http.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "starting"})
    assert int(health.headers["retry-after"]) >= 1
    assert (await api.http.get("/v1/models")).json()["data"][0]["id"] == "tiny"
    assert (await api.http.get("/metrics")).status_code == 200

    async with running(api.client):
        assert (await api.http.get("/health")).status_code == 200
        assert (await api.complete("a", max_tokens=1))["choices"]

    health = await api.http.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "stopped"})
    check_error(await api.post(COMPLETIONS), 503)


async def test_metrics_are_prometheus_text(api):
    response = await api.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'deepseek_serve_kv_cache_usage_ratio{model_name="tiny"}' in response.text


async def test_gauges_show_what_runs_and_go_back_to_zero(api):
    request = asyncio.create_task(api.complete(["a"] * 20, max_tokens=100, ignore_eos=True))

    async def busy():
        running, waiting = await api.metric("requests_running"), await api.metric("requests_waiting")
        return running == 16 and waiting == 4 and await api.metric("kv_cache_usage_ratio") > 0

    await api.until(busy)  # max_batch_size is 16
    await request
    for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
        assert await api.metric(name) == 0


async def test_the_schema_of_the_api_is_served(api):
    schema = (await api.http.get("/openapi.json")).json()
    assert {COMPLETIONS, CHAT, "/v1/models", "/health", "/metrics"} <= schema["paths"].keys()


async def test_the_document_has_the_errors_that_are_sent_and_no_other(api):
    schema = (await api.http.get("/openapi.json")).json()
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert not any("422" in operation["responses"] for operation in operations)
    assert not {"HTTPValidationError", "ValidationError"} & schema["components"]["schemas"].keys()
    for path in (COMPLETIONS, CHAT):
        responses = schema["paths"][path]["post"]["responses"]
        assert responses.keys() == {"200", "400", "401", "403", "404", "408", "413", "429", "431", "500", "503"}
        body = responses["400"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/Error"}


async def test_metrics_are_openmetrics_when_asked(api):
    headers = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain; q=0.5"}
    response = await api.http.get("/metrics", headers=headers)
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")
    assert {"process_cpu_seconds_total", "python_gc_collections_total"} <= {
        s.split("{")[0].split()[0] for s in response.text.splitlines()
    }


@pytest.mark.parametrize("path", ["/version", "/ping", "/load", "/metrics", "/v1/models", "/v1/models/tiny"])
async def test_head_is_answered_as_get_is(api, path):
    head, get = await api.http.head(path), await api.http.get(path)
    assert (head.status_code, get.status_code) == (200, 200)
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_a_wrong_method_is_told_all_that_are_right(api):
    response = await api.http.delete("/ping")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, POST")


async def test_sagemaker_may_ping_with_post_and_the_version_is_told(api):
    assert (await api.http.post("/ping")).status_code == 200
    assert (await api.http.get("/version")).json() == {"version": version("deepseek-serve")}

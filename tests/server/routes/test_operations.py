"""/health and /metrics, for probes and Prometheus."""

import asyncio

from tests.server.conftest import CHAT, COMPLETIONS, check_error, running


async def test_health_is_200_when_the_engine_is_ready(api):
    response = await api.http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_before_the_engine_is_ready_requests_get_503_with_retry_after(serve):
    api = await serve(run=False)
    for path in (COMPLETIONS, CHAT):
        for stream in (False, True):
            response = await api.post(path, stream=stream)
            check_error(response, 503, type="service_unavailable_error", code="server_is_overloaded")
            assert int(response.headers["retry-after"]) >= 1
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

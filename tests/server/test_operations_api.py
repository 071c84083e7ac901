"""/v1/models, /health and /metrics: what clients, probes and scrapers ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from server.app import create_app
from server.engine_client import InProcessEngine
from tests.server.conftest import CHAT, COMPLETIONS, check_error, running

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine
    from server.tokenizer import Tokenizer
    from tests.server.conftest import Api


async def test_models_lists_the_one_model_with_id_and_root(api: Api, tiny_llama: Path) -> None:
    listing = (await api.http.get("/v1/models")).json()
    assert listing["object"] == "list"
    [model] = listing["data"]
    assert (model["id"], model["object"], model["root"]) == ("tiny", "model", str(tiny_llama))
    assert model["max_model_len"] == 512
    assert isinstance(model["created"], int)
    assert (await api.http.get("/v1/models/tiny")).json() == model


async def test_an_unknown_model_is_not_found(api: Api) -> None:
    for name in ("gpt-4", "tiny/x", "Tiny", "a/b/c"):
        check_error(await api.http.get(f"/v1/models/{name}"), 404, type="not_found_error", code="model_not_found")


async def test_health_is_200_when_the_engine_is_ready(api: Api) -> None:
    response = await api.http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_before_the_engine_is_ready_requests_get_503_with_retry_after(
    tiny_engine: Engine, tiny_tokenizer: Tokenizer, tiny_llama: Path
) -> None:
    client = InProcessEngine(tiny_engine)
    transport = httpx.ASGITransport(create_app(client, tiny_tokenizer, "tiny", tiny_llama))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for path, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": [{"role": "user", "content": "a"}]})):
            for stream in (False, True):
                response = await http.post(path, json=body | {"stream": stream})
                check_error(response, 503, type="service_unavailable_error", code="server_is_overloaded")
                assert int(response.headers["retry-after"]) >= 1
        health = await http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "starting"})
        assert int(health.headers["retry-after"]) >= 1
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tiny"
        assert (await http.get("/metrics")).status_code == 200

        async with running(client):
            assert (await http.get("/health")).status_code == 200
            assert (await http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1})).status_code == 200

        health = await http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "stopped"})
        check_error(await http.post(COMPLETIONS, json={"prompt": "a"}), 503)


async def test_metrics_are_prometheus_text(api: Api) -> None:
    response = await api.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'deepseek_serve_kv_cache_usage_ratio{model_name="tiny"}' in response.text


async def test_requests_are_counted(api: Api) -> None:
    await api.complete("abc", max_tokens=5, ignore_eos=True, n=2)
    await api.stream(COMPLETIONS, prompt="abcd", max_tokens=7, ignore_eos=True)
    assert await api.metric("prompt_tokens_total") == 3 + 4
    assert await api.metric("generation_tokens_total") == 2 * 5 + 7
    assert await api.metric("sequences_finished_total", finished_reason="length") == 3
    assert await api.metric("e2e_request_latency_seconds_count") == 2
    assert await api.metric("time_to_first_token_seconds_count") == 3
    assert await api.metric("inter_token_latency_seconds_count") == 2 * 4 + 6
    assert await api.metric("request_generation_tokens_sum") == 17


async def test_gauges_show_what_runs_and_go_back_to_zero(api: Api) -> None:
    request = asyncio.create_task(api.complete(["a"] * 20, max_tokens=100, ignore_eos=True))

    async def busy() -> bool:
        running, waiting = await api.metric("requests_running"), await api.metric("requests_waiting")
        return running == 16 and waiting == 4 and await api.metric("kv_cache_usage_ratio") > 0

    await api.until(busy)  # max_batch_size is 16
    await request
    for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
        assert await api.metric(name) == 0


async def test_refused_requests_count_for_nothing(api: Api) -> None:
    check_error(await api.post(COMPLETIONS, prompt=[999]), 400)
    assert await api.metric("prompt_tokens_total") == 0
    assert await api.metric("e2e_request_latency_seconds_count") == 0


async def test_the_schema_of_the_api_is_served(api: Api) -> None:
    schema = (await api.http.get("/openapi.json")).json()
    assert {COMPLETIONS, CHAT, "/v1/models", "/health", "/metrics"} <= schema["paths"].keys()

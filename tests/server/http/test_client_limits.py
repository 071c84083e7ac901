"""Limits of each client, asked over ASGI: what is refused, what answers say, and what is settled."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from server.config import ServerConfig
from server.http.api_keys import ApiKeys, Caller
from server.rate_limits import RateLimits
from tests.server.conftest import CHAT, COMPLETIONS, check_error

TEN = {"max_tokens": 10, "ignore_eos": True}


def keys(**limits: int) -> ApiKeys:
    limited = RateLimits(**limits)
    return ApiKeys([Caller.of_key("sk-a", 1.0, "a", limited), Caller.of_key("sk-b", 1.0, "b", limited)])


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer sk-{key}"}


def left(response: httpx.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): value for name, value in response.headers.items() if name.startswith(prefix)}


async def complete(api, key: str = "a", prompt: str = "ab", **body) -> httpx.Response:
    return await api.http.post(COMPLETIONS, json={"prompt": prompt, **TEN, **body}, headers=of(key))


async def test_requests_of_a_minute(serve) -> None:
    api = await serve(keys=keys(requests_per_minute=2))
    for remaining in ("1", "0"):
        response = await complete(api)
        assert response.status_code == 200
        assert left(response)["limit-requests"] == "2"
        assert left(response)["remaining-requests"] == remaining
    response = await complete(api)
    error = check_error(response, 429, type="rate_limit_error", code="rate_limit_exceeded")
    assert "the key 'a'" in error["message"]
    assert "sk-a" not in response.text
    assert 1 <= int(response.headers["Retry-After"]) <= 30
    assert left(response)["remaining-requests"] == "0"
    assert (await complete(api, "b")).status_code == 200
    assert left(await api.http.get("/v1/models", headers=of("a")))["remaining-requests"] == "0"  # reading is free
    assert left(await api.http.get("/health")) == {}
    assert await api.metric("requests_refused_total", reason="rate_limited") == 1
    assert await api.metric("key_limited_total", key="a", limit="requests") == 1
    assert await api.metric("key_limited_total", key="b", limit="requests") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_settled_when_the_answer_ends(serve, stream) -> None:
    api = await serve(keys=keys(tokens_per_minute=300))
    body = {"prompt": "x" * 100, "max_tokens": 170, "allowed_token_ids": [257], "ignore_eos": False}  # EOS
    response = await complete(api, stream=stream, **body)
    assert response.status_code == 200
    assert 90 < int(left(response)["remaining-tokens"]) < 105
    taken = sum([await api.metric(f"key_{kind}_tokens_total", key="a") for kind in ("prompt", "generation")])
    assert 100 < taken < 110  # which come back in 20 s
    remaining = int(left(await api.http.get("/v1/models", headers=of("a")))["remaining-tokens"])
    assert 300 - taken - 1 <= remaining < 300
    await api.until_idle()


async def test_tokens_of_a_minute_are_refused_before_any_work(serve, monkeypatch) -> None:
    api = await serve(keys=keys(tokens_per_minute=60))
    assert (await complete(api, prompt="x" * 90, max_tokens=40)).status_code == 200  # more than the rate, once
    monkeypatch.setattr(api.tokenizer, "encode", lambda *_, **__: pytest.fail("it is not tokenised"))
    for _ in range(3):
        response = await complete(api)
        check_error(response, 429, code="rate_limit_exceeded")
        assert int(response.headers["Retry-After"]) > 1
        assert left(response)["remaining-tokens"] == "0"
    assert await api.metric("key_limited_total", key="a", limit="tokens") == 3


async def test_what_is_refused_gives_its_tokens_back(serve) -> None:
    api = await serve(keys=keys(tokens_per_minute=6000))
    for body in ({"max_tokens": 100_000}, {"model": "other"}, {"temperature": 9}):
        check = await api.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 100, **body}, headers=of("a"))
        assert check.status_code in (400, 404), check.text
    remaining = int(left(await api.http.get("/v1/models", headers=of("a")))["remaining-tokens"])
    assert remaining == 6000


async def test_requests_under_way(serve) -> None:
    api = await serve(keys=keys(max_requests=1))
    running = asyncio.create_task(complete(api, max_tokens=200))
    await api.until(lambda: is_running(api))
    response = await complete(api)
    check_error(response, 429, type="rate_limit_error")
    assert response.headers["Retry-After"] == "1"
    assert (await complete(api, "b")).status_code == 200
    running.cancel()
    await asyncio.wait({running})
    assert (await complete(api)).status_code == 200  # one that left counts no longer
    await api.until_idle()


async def is_running(api) -> bool:
    return api.engine.has_work


async def test_without_keys_an_address_is_limited_whatever_key_it_makes_up(serve) -> None:
    config = ServerConfig(data_dir="memory", client_requests_per_minute=2, trusted_proxies="10.0.0.0/8")
    api = await serve(config=config)

    async def ask(peer: str, number: int, forwarded: str) -> int:
        transport = httpx.ASGITransport(api.app, client=(peer, 1))
        headers = {"Authorization": f"Bearer sk-{number}", "X-Forwarded-For": forwarded}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return (await http.post("/tokenize", json={"prompt": "a"}, headers=headers)).status_code

    spoofed = [await ask("192.0.2.1", n, f"203.0.113.{n}") for n in range(4)]
    assert spoofed == [200, 200, 429, 429]  # nobody asked it for its opinion
    proxied = [await ask("10.0.0.1", n, f"203.0.113.{n}") for n in range(4)]
    assert proxied == [200] * 4
    same = [await ask("10.0.0.1", n, f"{n}.{n}.{n}.{n}, 198.51.100.1") for n in range(4)]
    assert same == [200, 200, 429, 429]
    network = [await ask("10.0.0.1", n, f"2001:db8:1:1::{n}") for n in range(4)]
    assert network == [200, 200, 429, 429]


async def test_an_address_behind_a_proxy_has_so_many_requests_under_way(serve) -> None:
    api = await serve(config=ServerConfig(data_dir="memory", max_client_connections=1, trusted_proxies="10.0.0.0/8"))
    transport = httpx.ASGITransport(api.app, client=("10.0.0.1", 1))

    def post(client: str, max_tokens: int):
        headers, body = {"X-Forwarded-For": client}, {"prompt": "a", "max_tokens": max_tokens, "ignore_eos": True}
        return http.post(COMPLETIONS, json=body, headers=headers)

    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        running = asyncio.create_task(post("203.0.113.1", 100))
        await api.until(lambda: is_running(api))
        check_error(await post("203.0.113.1", 1), 429, type="rate_limit_error")
        assert (await post("203.0.113.2", 1)).status_code == 200
        assert (await running).status_code == 200
        assert (await post("203.0.113.1", 1)).status_code == 200


async def test_the_lines_of_anthropics_api_have_its_shape(serve) -> None:
    api = await serve(keys=keys(requests_per_minute=1))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    await api.http.post("/v1/messages", json=body, headers=of("a"))
    answer = await api.http.post("/v1/messages", json=body, headers=of("a"))
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_without_limits_answers_say_nothing_of_them(serve) -> None:
    api = await serve(keys=keys())
    response = await api.http.post(
        CHAT, json={"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}, headers=of("a")
    )
    assert response.status_code == 200
    assert left(response) == {}

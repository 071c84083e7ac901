"""--cors-origins: which pages of other sites may ask, and that they may read every answer, errors too."""

import pytest

from engine.errors import ConfigError
from server.config import ServerConfig
from server.http.api_keys import ApiKeys, Caller
from server.http.cors import headers_for, parse_origins
from server.routes import models
from tests.server.conftest import CHAT, COMPLETIONS, check_error

SITE = "https://chat.example.com"
HERS = {"Origin": SITE, "Authorization": "Bearer sk-1"}
KEYS = ApiKeys([Caller.of_key("sk-1", 1.0, "k")])


def config(origins):
    return ServerConfig(cors_origins=origins)


def preflight(http, origin, path=CHAT):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    return http.options(path, headers={"Origin": origin, **asked})


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        (None, []),
        ("", []),
        ("*", ["*"]),
        (
            "https://a.b, http://localhost:3000 http://[::1]:80,",
            ["https://a.b", "http://localhost:3000", "http://[::1]:80"],
        ),
    ],
)
def test_origins_stand_between_commas_or_spaces(text, origins):
    assert parse_origins(text) == origins


@pytest.mark.parametrize(
    "origin", ["example.com", "https://a/", "https://A.b", "https://*.a.b", "null", "http://a b:c"]
)
def test_what_no_browser_would_send_is_refused(origin):
    with pytest.raises(ConfigError, match="--cors-origins has"):
        config(f"http://fine,{origin}")


async def test_without_the_flag_no_other_site_may_ask(api):
    response = await api.http.get("/v1/models", headers=HERS)
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert (await preflight(api.http, SITE)).status_code == 405


@pytest.mark.parametrize("allowed", [SITE, "*"])
async def test_a_preflight_needs_no_key(serve, allowed):
    http = (await serve(config=config(allowed), keys=KEYS)).http
    response = await preflight(http, SITE)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == allowed
    assert response.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert {"POST", "DELETE"} <= set(response.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-credentials" not in response.headers
    assert (await preflight(http, "https://other.example")).status_code == (200 if allowed == "*" else 400)


@pytest.mark.parametrize("allowed", [SITE, f"http://a,{SITE}", "*"])
async def test_every_answer_may_be_read(serve, allowed, monkeypatch):
    api = await serve(config=config(allowed), keys=KEYS)

    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(models, "_describe", fail, raising=True)
    answers = {
        200: await api.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers=HERS),
        201: await api.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1, "stream": True}, headers=HERS),
        400: await api.http.post(COMPLETIONS, json={}, headers=HERS),
        401: await api.http.post(COMPLETIONS, json={"prompt": "a"}, headers={"Origin": SITE}),
        404: await api.http.get("/nothing", headers=HERS),
        500: await api.http.get("/v1/models", headers=HERS),
    }
    for status, response in answers.items():
        assert response.status_code == (200 if status == 201 else status)
        assert response.headers["access-control-allow-origin"] == ("*" if allowed == "*" else SITE)
        assert "Retry-After" in response.headers["access-control-expose-headers"]
        assert "Origin" in response.headers["vary"]
    await api.until_idle()


async def test_another_sites_page_may_not_read(serve):
    http = (await serve(config=config(SITE))).http
    for origin in ("https://other.example", "https://chat.example.com.evil.example", "null"):
        assert "access-control-allow-origin" not in (await http.get("/v1/models", headers={"Origin": origin})).headers


def test_refusals_without_the_app_may_be_read_too():
    request = [(b"host", b"x"), (b"origin", SITE.encode())]
    assert headers_for([SITE], request)["Access-Control-Allow-Origin"] == SITE
    assert headers_for(["*"], request)["Access-Control-Allow-Origin"] == "*"
    assert headers_for(["http://a"], request) == headers_for([], request) == headers_for(["*"], []) == {}


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({}, False),  # curl, OpenAI's clients
        ({"sec-fetch-mode": "cors"}, False),  # Node's fetch
        ({"origin": "http://test", "sec-fetch-site": "same-origin"}, False),
        ({"origin": "http://test"}, False),  # browsers name no relation where there is no TLS
        ({"origin": "https://test"}, False),  # which a proxy has taken off
        ({"origin": "https://proxied.example", "sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "app://obsidian.md", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "file://", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "chrome-extension://abc"}, False),
        ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, False),
        ({"origin": "http://tauri.localhost"}, False),
        ({"origin": "http://127.0.0.1:8080"}, False),
        ({"origin": SITE, "sec-fetch-site": "cross-site"}, True),
        ({"origin": SITE}, True),
        ({"origin": "http://test:81", "sec-fetch-site": "same-site"}, True),
        ({"origin": "null"}, True),  # a sandboxed frame, or a page without referrers
        ({"sec-fetch-site": "cross-site"}, True),
        ({"origin": "http://localhost.evil.example"}, True),
        ({"origin": "http://127.0.0.1.evil.example"}, True),
    ],
)
async def test_pages_of_other_sites_have_nothing_computed(api, headers, is_refused):
    """A simple request, which browsers send without a preflight, would compute although its page cannot read it."""
    body = {"content": b'{"prompt": "a", "max_tokens": 1}', "headers": {"Content-Type": "text/plain", **headers}}
    response = await api.http.post(COMPLETIONS, **body)
    assert response.status_code == (403 if is_refused else 200), response.text
    if is_refused:
        check_error(response, 403, type="permission_error")
        assert await api.metric("requests_refused_total", reason="unauthorized") == 1
    assert (await api.http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("allowed", [SITE, "*"])
async def test_sites_that_are_let_in_may_compute(serve, allowed):
    api = await serve(config=config(allowed))
    response = await api.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers={"Origin": SITE})
    assert response.status_code == 200
    other = {"Origin": "https://other.example"}
    response = await api.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers=other)
    assert response.status_code == (200 if allowed == "*" else 403)

"""Unknown parameters of a URL's query are refused by name on every route of the API."""

import pytest

from tests.server.conftest import check_error

_PROBES = ("/health", "/livez", "/readyz", "/startupz", "/ping", "/metrics", "/load", "/version")


def _asked(app):
    """Each method and path of the API itself: of what is for clients, not for probes and browsers."""
    for route in app.state.routes:
        path = route.path_format.format(**dict.fromkeys(route.param_convertors, "x"))
        if path.startswith("/v1/") or path in ("/tokenize", "/detokenize", "/tokenizer_info"):
            yield from ((method, path) for method in route.methods)


async def test_every_route_refuses_what_it_does_not_know(api):
    asked = list(_asked(api.app))
    assert len(asked) > 25
    for method, path in asked:
        answer = await api.http.request(method, path, params={"include[]": "x"})
        assert answer.status_code == 400, (method, path)
        if method != "HEAD":
            error = answer.json()["error"]
            assert error["message"] == "Unsupported parameter: 'include[]' is not implemented by this server."


async def test_openais_shape_names_the_parameter(api):
    check_error(await api.http.get("/v1/responses/resp_x?include=a"), 400, param="include")
    check_error(await api.http.post("/v1/chat/completions?stream="), 400, param="stream")
    check_error(await api.http.get("/v1/responses/resp_x/input_items?limit=0"), 400, param="limit")


async def test_what_is_known_is_taken(api):
    check_error(await api.http.get("/v1/responses/resp_x?stream=false"), 404)
    assert (await api.http.get("/v1/files?limit=1")).status_code == 200
    body = {"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    assert (await api.http.post("/v1/messages?beta=true", json=body)).status_code == 200


@pytest.mark.parametrize("path", [*_PROBES, "/", "/docs"])
async def test_probes_and_browsers_may_add_what_they_like(api, path):
    assert (await api.http.get(f"{path}?x=1")).status_code in (200, 503)

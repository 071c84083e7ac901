"""Classes of access: every route has one, and what has none is not there."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Response

from server.config import ServerConfig
from server.http.api_keys import ApiKeys, Caller
from server.http.gate import ROUTES, Access, AccessTable
from tests.server.conftest import check_error

ADMIN_PORT = 9100
KEYS = ApiKeys([Caller.of_key("sk-1", 1.0, "k")])
MINE = {"Authorization": "Bearer sk-1"}


async def test_every_route_has_a_class_of_access_and_every_class_a_route(serve) -> None:
    app = (await serve()).app
    paths = {route.path for route in app.state.routes}
    assert paths - ROUTES.keys() == set(), "declare these routes in server.http.gate.ROUTES"
    assert ROUTES.keys() - paths == set(), "these routes are gone"


@pytest.mark.parametrize("keys", [KEYS, ApiKeys()])
async def test_a_route_that_is_not_declared_is_not_there(serve, keys) -> None:
    api = await serve(keys=keys)
    for path in ("/undeclared", "/v1/undeclared/{name}", "/health/more"):
        api.app.add_api_route(path, lambda: Response("secret"), methods=["GET", "POST"])
    for path in ("/undeclared", "/undeclared/", "/v1/undeclared/x", "/health/more"):
        for method in ("GET", "POST"):
            check_error(await api.http.request(method, path, headers=MINE), 404, type="not_found_error")
            if keys is KEYS:
                check_error(await api.http.request(method, path), 401)


def test_parameters_match_as_routes_do() -> None:
    table = AccessTable({"/a": Access.PAGE, "/a/{name}": Access.KEY, "/b/{name:path}": Access.ADMIN})
    found = [table[path] for path in ("/a", "/a/x", "/a/x/y", "/a/", "/b/x", "/b/x/y", "/c", "/A")]
    assert found == [Access.PAGE, Access.KEY, None, None, Access.ADMIN, Access.ADMIN, None, None]


async def test_with_an_admin_port_metrics_are_there_alone(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTES, "/debug", Access.ADMIN)
    api = await serve(keys=KEYS, config=ServerConfig(data_dir="memory", admin_port=ADMIN_PORT))
    api.app.add_api_route("/debug", lambda: Response("state"))
    async with httpx.AsyncClient(transport=api.http._transport, base_url=f"http://localhost:{ADMIN_PORT}") as admin:
        for path, main, there in (
            ("/metrics", 404, 200),
            ("/load", 404, 200),
            ("/debug", 404, 200),
            ("/readyz", 200, 200),
            ("/v1/models", 200, 404),
            ("/", 200, 404),
            ("/nothing", 404, 404),
        ):
            assert (await api.http.get(path, headers=MINE)).status_code == main, path
            assert (await admin.get(path)).status_code == there, path
        assert (await api.http.get("/debug")).status_code == 401
        check_error(await admin.get("/metrics", headers={"Host": f"evil.example:{ADMIN_PORT}"}), 400)


async def test_without_an_admin_port_metrics_are_open_and_no_key_opens_what_is_for_administrators(
    serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUTES, "/debug", Access.ADMIN)
    api = await serve(keys=KEYS)
    api.app.add_api_route("/debug", lambda: Response("state"))
    assert (await api.http.get("/metrics")).status_code == 200
    assert (await api.http.get("/debug", headers=MINE)).status_code == 404

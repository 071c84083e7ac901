"""The page at / and the API's reference: files of ours alone, under a strict policy, open to all."""

import re
from pathlib import Path

import pytest

from server import routes
from server.http.api_keys import ApiKeys, Caller
from tests.server.conftest import check_error

FOLDER = Path(routes.__file__).parents[1] / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())


async def test_the_page_and_the_reference_need_no_key_but_the_api_does(serve):
    http = (await serve(keys=ApiKeys([Caller.of_key("sk-1", 1.0, "k")]))).http
    for path in ("/", "/page/main.js", "/docs", "/docs/swagger-ui-bundle.js", "/openapi.json"):
        for method in ("GET", "HEAD"):
            assert (await http.request(method, path)).status_code == 200, path
    check_error(await http.get("/v1/models"), 401)


async def test_the_reference_asks_for_a_key_where_one_is_needed(serve, api):
    assert "securitySchemes" not in (await api.http.get("/openapi.json")).json()["components"]
    http = (await serve(keys=ApiKeys([Caller.of_key("sk-1", 1.0, "k")]))).http
    document = (await http.get("/openapi.json")).json()
    names = document["components"]["securitySchemes"]
    assert document["paths"]["/v1/completions"]["post"]["security"] == [{name: []} for name in names]
    assert "security" not in document["paths"]["/load"]["get"]


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_no_script_style_or_frame_of_anyone_else_is_allowed(api, path):
    response = await api.http.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert ("require-trusted-types-for" in policy) == (path == "/")


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_all_that_a_page_refers_to_is_served_from_here(api, path):
    """Addresses are relative, so that the page works beneath a path of a proxy too."""
    text = (await api.http.get(path)).text
    addresses = re.findall(r'(?:href|src)="([^"#]+)"', text)
    assert len(addresses) > 3
    for address in addresses:
        assert re.fullmatch(r"[a-z]+(\.json|/[a-z_-]+\.(js|css|svg))?", address)
        assert (await api.http.get(f"/{address}")).status_code == 200


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
async def test_modules_import_one_another_and_reach_nowhere_else(api, name):
    text = (await api.http.get(f"/page/{name}")).text
    assert set(re.findall(r'from "\./([a-z_]+\.js)"', text)) <= set(FILES)
    assert set(re.findall(r"[a-z]+://[^/\s\"]*", text)) <= {"http://www.w3.org"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\bFunction\(", text)


async def test_the_reference_with_a_slash_is_the_reference(api):
    response = await api.http.get("/docs/", follow_redirects=True)
    assert (response.status_code, str(response.url)) == (200, "http://test/docs")


async def test_a_file_that_is_known_is_not_sent_again(api):
    for path in ("/", "/page/style.css", "/docs/swagger-ui.css"):
        first = await api.http.get(path)
        assert first.headers["cache-control"] == "no-cache"
        second = await api.http.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (second.status_code, second.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2fapp.py", "%2e%2e%2fapp.py", "%2e%2e/app.py", "a/b", "%00", "main.js%00.png"]
)
async def test_nothing_else_is_served(api, name):
    for folder in ("page", "docs"):
        check_error(await api.http.get(f"/{folder}/{name}"), 404)


async def test_the_pages_are_no_part_of_the_api(api):
    paths = (await api.http.get("/openapi.json")).json()["paths"].keys()
    assert not [path for path in paths if path == "/" or path.startswith(("/page", "/docs"))]
    check_error(await api.http.post("/", json={}), 405)

"""What is no request for any route: an answer below 500 in OpenAI's error shape."""

import pytest

from tests.server.conftest import CHAT, COMPLETIONS, check_error


async def post(api, path, content, content_type="application/json"):
    return await api.http.post(path, content=content, headers={"Content-Type": content_type})


@pytest.mark.parametrize(
    "content",
    [b"", b" ", b"{", b'{"prompt": "a"', b'{"prompt": "a",}', b"{'prompt': 'a'}", b'{"prompt": "a"} x', b"\xff\xfe",
     b'{"prompt": "\xff"}', b"\xef\xbb\xbf{}", b"\x00", b'{"prompt": ' + b"9" * 5000 + b"}", b"null", b"[]", b'"a"',
     b"5", b"true", b"NaN", b'[{"prompt": "a"}]'],
    ids=lambda content: repr(content)[:30],
)  # fmt: skip
async def test_bodies_that_are_no_json_object_are_refused(api, path, content):
    check_error(await post(api, path, content), 400, type="invalid_request_error")


async def test_a_charset_beside_the_content_type_is_fine(api):
    response = await post(api, COMPLETIONS, b'{"prompt": "a"}', "application/json; charset=utf-8")
    assert response.status_code == 200


@pytest.mark.parametrize("url", ["/page", "/v1", "/v1/completion", "/v1/chat", "/v1/embedding", "/v2/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_route_is_not_found(api, url, method):
    check_error(await api.http.request(method, url), 404, type="not_found_error")


@pytest.mark.parametrize(
    ("method", "url"),
    [("GET", COMPLETIONS), ("PUT", CHAT), ("DELETE", CHAT), ("POST", "/v1/models"), ("POST", "/health"),
     ("PUT", "/metrics")],
)  # fmt: skip
async def test_a_wrong_method_is_not_allowed(api, method, url):
    response = await api.http.request(method, url)
    check_error(response, 405, type="invalid_request_error")
    assert response.headers["allow"]


async def test_of_a_path_with_several_routes_all_methods_are_allowed(api):
    response = await api.http.patch("/v1/responses/resp_x")
    assert {"DELETE", "GET"} <= set(response.headers["allow"].split(", "))


async def test_an_unexpected_error_is_a_500_without_its_reason(api, path, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(type(api.tokenizer), "encode", broken)
    error = check_error(await api.post(path), 500, type="server_error")
    assert "secret" not in error["message"]
    assert "secret" in caplog.text
    assert api.app.state.server.admission.num_prompts == 0

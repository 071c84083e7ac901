"""API keys: which requests are let in, and which tenant a request counts for."""

import hashlib

import pytest

from engine.errors import ConfigError
from server.http.api_keys import ApiKeys, Caller
from server.rate_limits import RateLimits
from tests.server.conftest import COMPLETIONS, check_error

KEY = "sk-ünïcode-1"


def identify(keys, authorization):
    return keys.identify([] if authorization is None else [(b"authorization", authorization)])


def test_without_keys_everyone_is_let_in_and_told_apart():
    keys = ApiKeys()
    callers = [identify(keys, header) for header in (None, b"Bearer a", b"Bearer b", b"bearer  a ", b"Basic a", b"")]
    tenants = [caller.tenant for caller in callers]
    assert tenants[0] == tenants[4] == tenants[5] == b""
    assert tenants[1] == tenants[3] != tenants[2]
    assert tenants[1] != b"a"  # a hash, not the key
    assert {caller.key_name for caller in callers} == {"none"}  # anyone can make up keys; metrics must stay small


def test_keys_come_from_the_flag_and_from_a_file_with_weights_and_names(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# comment\n\nsk-a 2.5\nsk-b\nsk-d team-d\nsk-e 3 team.e\n")
    keys = ApiKeys.load("sk-c", str(path))
    callers = [identify(keys, f"Bearer sk-{key}".encode()) for key in "abcde"]
    assert [caller.weight for caller in callers] == [2.5, 1.0, 1.0, 1.0, 3.0]
    assert [caller.key_name for caller in callers] == ["key-3", "key-4", "api-key", "team-d", "team.e"]
    assert identify(keys, b"Bearer sk-f") is None


def test_a_key_may_have_limits_of_its_own(tmp_path):
    path, limits = tmp_path / "keys", RateLimits(max_requests=8, tokens_per_minute=1000)
    path.write_text(
        "sk-a\nsk-b 2 b requests=3 requests-per-minute=60\nsk-c tokens-per-minute=none requests=none\nsk-d= d\n"
    )
    keys = ApiKeys.load("sk-e", str(path), limits)
    assert [identify(keys, f"Bearer sk-{key}".encode()).limits for key in ("a", "b", "c", "d=", "e")] == [
        limits,
        RateLimits(3, 60, 1000),
        RateLimits(),
        limits,
        limits,
    ]


def test_an_error_of_the_file_says_nothing_that_is_in_it(tmp_path):
    for content in (
        b"sk-secret 1 2 3",
        b"sk-secret \xff",
        b"sk-secret requests=sk-secret",
        b"sk-ok\nsk-secret a b c",
        b"sk-\0secret",
    ):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(ConfigError) as info:
            ApiKeys.load(None, str(tmp_path / "keys"))
        assert "secret" not in str(info.value)


def test_keys_are_looked_up_by_their_hashes_alone():
    """What a guess has in common with a key is nothing that a look-up could meet: neither is compared, or even kept."""
    keys = ApiKeys([Caller.of_key("sk-secret", 1.0, "k")])
    assert "sk-secret" not in repr(vars(keys))
    [(tenant, caller)] = keys._callers.items()
    assert tenant == caller.tenant == hashlib.sha256(b"sk-secret").digest()
    assert identify(keys, b"Bearer " + tenant) is None


def test_keys_are_taken_over_whole():
    old = ApiKeys([Caller.of_key("sk-a", 1.0, "a"), Caller.of_key("sk-b", 1.0, "b")])
    assert old.take_over(ApiKeys([Caller.of_key("sk-b", 2.0, "b"), Caller.of_key("sk-c", 1.0, "c")])) == (1, 1)
    assert identify(old, b"Bearer sk-a") is None
    assert identify(old, b"Bearer sk-b").weight == 2.0
    assert identify(old, b"Bearer sk-c").key_name == "c"


@pytest.mark.parametrize(
    "line",
    [
        "k requests=0",
        "k requests=",
        "k requests=1 requests=2",
        "k rpm=1",
        "k requests=1e3",
        "k requests=1 a",
        "k 0",
        "k -1",
        "k 1 2",
        "k 1 a 2",
        "k 1 a b",
        "k nan",
        "k inf",
        "k 1 ä",
        "k " + "a" * 33,
        "k a/b",
        "k none",
        "# only",
    ],
)
def test_a_bad_file_is_refused_by_its_line(tmp_path, line):
    (tmp_path / "keys").write_text(line)
    with pytest.raises(ConfigError, match=r"line 1: expected|has no key"):
        ApiKeys.load(None, str(tmp_path / "keys"))
    with pytest.raises(ConfigError, match="cannot be read"):
        ApiKeys.load(None, str(tmp_path / "absent"))


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer sk-wrong", b"Bearer \xff\xfe", b"Basic x"]
)
async def test_no_route_but_the_public_ones_answers_without_a_key(serve, header):
    http = (await serve(keys=ApiKeys([Caller.of_key(KEY, 1.0, "k")]))).http
    headers = {} if header is None else {"Authorization": header}
    for url in ("/health", "/health/", "/livez", "/readyz", "/startupz", "/metrics", "/load", "/version", "/ping"):
        assert (await http.get(url, headers=headers)).status_code == 200
    for url in (
        "/v1/models",
        "/v1/models/tiny",
        "/nothing",
        "http://test//health",
        "/health//",
        "/page",
        "/docs-x",
    ):
        response = await http.get(url, headers=headers)
        check_error(response, 401, type="authentication_error", code="invalid_api_key")
    response = await http.post(COMPLETIONS, json={"prompt": "a"}, headers=headers)
    check_error(response, 401, code="invalid_api_key")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("x-api-key", KEY)], 200),
        ([("x-api-key", "sk-wrong")], 401),
        ([("x-api-key", KEY), ("x-api-key", KEY)], 401),
        ([("x-api-key", "sk-wrong"), ("Authorization", f"Bearer {KEY}")], 200),
        ([("x-api-key", KEY), ("Authorization", "Bearer sk-wrong")], 401),
    ],
)
async def test_a_key_may_come_as_x_api_key_where_no_authorization_does(serve, headers, status):
    http = (await serve(keys=ApiKeys([Caller.of_key(KEY, 1.0, "k")]))).http
    encoded = [(name, value.encode()) for name, value in headers]
    assert (await http.get("/v1/models", headers=encoded)).status_code == status


async def test_tokens_are_counted_by_the_name_of_a_key_and_refusals_as_unauthorized(serve):
    api = await serve(keys=ApiKeys([Caller.of_key("sk-secret-1", 1.0, "a"), Caller.of_key("sk-secret-2", 1.0, "b")]))
    for key, num_tokens in (("sk-secret-1", 3), ("sk-secret-2", 4), ("sk-secret-1", 5), ("sk-wrong", 6)):
        body = {"prompt": "ab", "max_tokens": num_tokens, "ignore_eos": True}
        await api.http.post(COMPLETIONS, json=body, headers={"Authorization": f"Bearer {key}"})
    counts = [
        await api.metric(f"key_{kind}_tokens_total", key=key) for kind in ("prompt", "generation") for key in ("a", "b")
    ]
    assert counts == [4, 2, 8, 4]
    assert await api.metric("requests_refused_total", reason="unauthorized") == 1
    assert "sk-" not in (await api.http.get("/metrics")).text


async def test_the_key_lets_in(serve):
    http = (await serve(keys=ApiKeys([Caller.of_key(KEY, 1.0, "k")]))).http
    header = ("Authorization", f"Bearer {KEY}".encode())
    response = await http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers=[header])
    assert response.status_code == 200
    assert (await http.get("/v1/models", headers=[header] * 2)).status_code == 401


async def test_a_prefix_is_not_shared_between_keys(api):
    """The time that a cached prefix saves would tell one tenant what another has sent."""

    async def cached(key):
        body = {"prompt": "p" * 64, "max_tokens": 1}
        response = await api.http.post(COMPLETIONS, json=body, headers={"Authorization": f"Bearer {key}"})
        return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert [await cached("one"), await cached("one"), await cached("two"), await cached("two")] == [0, 48, 0, 48]

"""Rows 1 to 21: what stands in the fields of a request (tests.robustness.rows)."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from tests.robustness.conftest import HEADERS, MAX_SEQ_LEN
from tests.server.conftest import CHAT, COMPLETIONS, check_error

if TYPE_CHECKING:
    from tests.e2e.server_process import ServerProcess

EMBEDDINGS, SCORE, RERANK = "/v1/embeddings", "/v1/score", "/v1/rerank"
_MEMORY = 100 << 20  # bytes by which one request may let a process grow
_STALL = 0.5  # seconds that a probe may take beside a bad request
_PROBLEM = 1 << 19  # bytes of an answer that refuses
NEST = "[" * 20_000 + "]" * 20_000
PICKLE = "gASVHQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu"  # would run a command if it were read


def row(number: int, what: str, *values: Any) -> Any:
    return pytest.param(*values, id=f"{number:02} {what}")


def completion(number: int, what: str | None = None, **fields: Any) -> Any:
    return row(number, what or ", ".join(fields), COMPLETIONS, json.dumps({"prompt": "a"} | fields))


def chat(number: int, what: str, content: Any, **fields: Any) -> Any:
    return row(number, what, CHAT, json.dumps({"messages": [{"role": "user", "content": content}], **fields}))


def heads(number: int, what: str, path: str, **fields: Any) -> Any:
    return row(number, f"{path} {what}", path, json.dumps(fields))


def raw(number: int, what: str, field: str, value: str) -> Any:
    """A completion with a value that Python's JSON does not write."""
    return row(number, what, COMPLETIONS, f'{{"prompt": "a", "{field}": {value}}}')


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


REFUSED = [
    completion(1, n=1_000_000),
    completion(1, best_of=1_000_000),
    completion(1, "n of many prompts", prompt=["a"] * 2000, n=128),
    heads(1, "texts", EMBEDDINGS, input=["a"] * 2049),
    heads(1, "documents", RERANK, query="a", documents=["a"] * 2049),
    completion(1, stop=[str(i) for i in range(100_000)]),
    completion(1, stop_token_ids=[1] * 100_000),
    *(raw(2, f"{field} {value}", field, value)
      for field in ("temperature", "top_p", "min_p", "repetition_penalty", "timeout")
      for value in ("NaN", "Infinity", "-Infinity", "1e999")),
    *(row(2, f"dimensions {value}", EMBEDDINGS, f'{{"input": "a", "dimensions": {value}}}')
      for value in ("NaN", "Infinity", "-1", "1e999", "1.5")),
    raw(2, "logit_bias NaN", "logit_bias", '{"1": NaN}'),
    completion(3, min_tokens=1_000_000),
    completion(3, "min_tokens beyond max_tokens", min_tokens=9, max_tokens=8),
    *(completion(4, f"{field} {str(value)[:20]}", **{field: value})
      for field, value in (("max_tokens", -1), ("max_tokens", 1 << 63), ("n", -1), ("n", 0), ("seed", 1 << 63),
                           ("top_k", -2), ("top_k", 1 << 40), ("logprobs", -1), ("min_tokens", -1),
                           ("priority", 1 << 63), ("max_tokens", 10**400))),
    *(completion(5, f"prompt {prompt}", prompt=prompt)
      for prompt in ([258], [-1], [65, 1 << 31], [1 << 63], [[65], [258]])),
    *(heads(5, f"{ids}", EMBEDDINGS, input=ids) for ids in ([258], [-1], [65, 1 << 31], [1 << 63], [[65], [258]])),
    completion(5, logit_bias={"258": 1}),
    completion(5, stop_token_ids=[258]),
    completion(6, logprobs=1_000_000),
    chat(6, "top_logprobs", "a", logprobs=True, top_logprobs=1000),
    *(completion(8, f"prompt {prompt!r}", prompt=prompt) for prompt in ("", [], [""], [[]], ["a", ""], None)),
    *(heads(8, f"input {given!r}", EMBEDDINGS, input=given) for given in ("", [], [""], [[]], ["a", ""], None)),
    heads(8, "no documents", RERANK, query="a", documents=[]),
    heads(8, "an empty document", RERANK, query="a", documents=["a", ""]),
    row(8, "no messages", CHAT, '{"messages": []}'),
    row(8, "no body", COMPLETIONS, ""),
    row(9, "a body", COMPLETIONS, NEST),
    row(9, "a prompt", COMPLETIONS, f'{{"prompt": {NEST}}}'),
    row(9, "an input", EMBEDDINGS, f'{{"input": {NEST}}}'),
    row(9, "documents", RERANK, f'{{"query": "a", "documents": {NEST}}}'),
    row(9, "messages", CHAT, f'{{"messages": {NEST}}}'),
    row(9, "objects", CHAT, '{"messages": ' + '{"a":' * 20_000 + "1" + "}" * 20_001),
    completion(11, "as text", prompt="a" * (MAX_SEQ_LEN + 100)),
    heads(11, "as text", EMBEDDINGS, input=["a", "a" * (MAX_SEQ_LEN + 100)]),
    heads(11, "as ids", EMBEDDINGS, input=[[65] * (MAX_SEQ_LEN + 100)]),
    completion(11, "as ids", prompt=[65] * (MAX_SEQ_LEN + 100)),
    completion(11, "with its output", prompt=[65] * 4000, max_tokens=4000),
    chat(15, "chat_template", "a", chat_template="{% for i in range(10**9) %}x{% endfor %}"),
    completion(17, prompt_embeds=PICKLE),
    completion(17, "embeddings in the prompt", prompt=[0.25, 0.5]),
    chat(17, "embeddings in a message", [{"type": "image_embeds", "image_embeds": PICKLE}]),
    chat(19, "a thousand images", [image("data:image/png;base64,iVBORw0KGgo=")] * 1000),
    chat(19, "a large image", [image("data:image/png;base64," + "A" * 3_000_000)]),
    completion(20, user="u" * 1_000_000),
    completion(20, "user of another kind", user={"a": 1}),
    *(completion(21, **{field: value})
      for field, value in (("use_beam_search", True), ("nonsense", 1), ("lora_path", "x"), ("kv_transfer_params", {}))),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), REFUSED)
def test_it_is_refused(server: ServerProcess, path: str, body: str) -> None:
    started = time.monotonic()
    response = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
    check_error(response, 400, type="invalid_request_error")
    assert time.monotonic() - started < 2
    assert len(response.content) < _PROBLEM
    assert PICKLE not in response.text


@pytest.mark.parametrize("field", [row(21, field, field) for field in ("nonsense", "use_beam_search")])
def test_a_field_is_named(server: ServerProcess, field: str) -> None:
    response = server.http.post(COMPLETIONS, json={"prompt": "a", field: 1})
    assert f"'{field}'" in check_error(response, 400, param=field)["message"]


LONG = "a" * 3000


@pytest.mark.parametrize(("path", "body", "status"), [
    row(41, "two thousand texts", EMBEDDINGS, {"input": [f"text {i}" for i in range(2048)]}, 200),
    row(41, "two thousand texts as numbers", EMBEDDINGS, {"input": ["a"] * 2048, "encoding_format": "base64"}, 200),
    row(41, "a long query beside each document", RERANK, {"query": LONG, "documents": ["a"] * 2048}, 200),
    row(41, "a long query with each document", SCORE, {"queries": [LONG] * 650, "documents": [LONG] * 650}, 400),
])  # fmt: skip
def test_many_texts(server: ServerProcess, path: str, body: dict[str, Any], status: int) -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, trust_env=False) as probe:
        asking = pool.submit(server.http.post, path, json=body)
        longest = 0.0
        while not asking.done():
            started = time.monotonic()
            assert probe.get("/livez").status_code == 200
            longest = max(longest, time.monotonic() - started)
    assert asking.result().status_code == status, asking.result().text[:1000]
    assert longest < _STALL


SERVED = [
    completion(3, max_tokens=None),
    chat(3, "max_tokens null", "a", max_tokens=None, max_completion_tokens=8),
    completion(6, "logprobs of a long prompt", prompt=[65] * 4000, echo=True, logprobs=5, max_tokens=1),
    *(completion(7, mode, frequency_penalty=2, presence_penalty=-2, repetition_penalty=1.5, max_tokens=8, **options)
      for mode, options in (("greedy", {"temperature": 0}), ("sampled", {"temperature": 1}), ("n", {"n": 4}),
                            ("streamed", {"stream": True}), ("logprobs", {"logprobs": 5}),
                            ("echo", {"echo": True, "logprobs": 2}))),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), SERVED)
def test_it_is_served(server: ServerProcess, path: str, body: str) -> None:
    before = memory(server)
    response = server.http.post(path, content=body)
    assert response.status_code == 200, response.text
    assert '"error"' not in response.text
    assert memory(server) - before < _MEMORY


def memory(server: ServerProcess) -> int:
    """Bytes of the server and its engine."""
    return sum(psutil.Process(pid).memory_info().rss for pid in (server.process.pid, server.engine.pid))


@pytest.mark.parametrize("content", [
    row(10, "5 MB", b'{"prompt": "' + b"a " * 2_500_000 + b'"}'),
    row(10, "27 MB", b'{"prompt": "' + b"a " * 13_500_000 + b'"}'),
    row(10, "3 MB within the limit of a body", b'{"prompt": "' + b"a " * 1_500_000 + b'"}'),
    row(10, "numbers", b'{"prompt": [' + b"1," * 1_900_000 + b"1]}"),
    row(10, "keys", b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b"}"),
])  # fmt: skip
def test_a_huge_prompt(server: ServerProcess, content: bytes) -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, trust_env=False) as probe:
        asking = pool.submit(server.http.post, COMPLETIONS, content=content)
        longest = 0.0
        while not asking.done():
            started = time.monotonic()
            assert probe.get("/livez").status_code == 200
            longest = max(longest, time.monotonic() - started)
    assert asking.result().status_code in (400, 413), asking.result().text
    assert longest < _STALL


SCHEMA: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "x", "strict": True}}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": SCHEMA | {"json_schema": SCHEMA["json_schema"] | {"schema": value}}}


def tool(function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(("fields", "statuses"), [
    row(12, "(a+)+b", {"structured_outputs": {"regex": "(a+)+b"}}, (200, 400)),
    row(12, "a repeat of a repeat", {"structured_outputs": {"regex": "((a{1,99}){1,99}){1,99}"}}, (200, 400)),
    row(12, "a look-behind", {"structured_outputs": {"regex": r"(?<=a)b\1"}}, (400,)),
    row(13, "a type that is none", schema({"type": "wizard"}), (400,)),
    row(13, "a schema that is none", schema([1, 2]), (400,)),
    row(13, "a reference to nowhere", schema({"$ref": "#/definitions/none"}), (400,)),
    row(13, "a reference to the network", schema({"$ref": "http://127.0.0.1:9/schema.json"}), (400,)),
    row(13, "a pattern that is none", schema({"type": "string", "pattern": "(("}), (400,)),
    row(13, "a tool without a name", tool({"parameters": {}}), (400,)),
    row(13, "a tool whose type is none", {"tools": [{"type": "wizard"}]}, (400,)),
    row(13, "a tool whose parameters are none", tool({"name": "f", "parameters": {"type": "wizard"}}), (400,)),
])  # fmt: skip
def test_a_grammar(server: ServerProcess, fields: dict[str, Any], statuses: tuple[int, ...]) -> None:
    started = time.monotonic()
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, **fields}
    response = server.http.post(CHAT, json=body)
    assert response.status_code in statuses, response.text
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("number", [row(14, "100 schemas", 100)])
def test_a_flood_of_schemas(server: ServerProcess, number: int) -> None:
    def ask(i: int) -> int:
        names = {f"name{i}_{j}": {"type": "string", "pattern": f"^[a-z]{{{j}}}{i}$"} for j in range(20)}
        fields = schema({"type": "object", "properties": names, "additionalProperties": False, "required": [*names]})
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **fields}
        return server.http.post(CHAT, json=body).status_code

    assert {ask(i) for i in range(10)} <= {200, 400}
    before = memory(server)
    assert {ask(i) for i in range(10, number)} <= {200, 400}
    assert memory(server) - before < _MEMORY


@pytest.mark.parametrize("where", [row(18, where, where) for where in ("content", "a redirect", "metadata")])
def test_an_images_address(server: ServerProcess, where: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/latest/meta-data"
        urls = {"content": url, "a redirect": f"http://localhost:{listener.getsockname()[1]}/", "metadata": url}
        if where == "metadata":
            urls["metadata"] = "http://169.254.169.254/latest/meta-data"
        content = [{"type": "text", "text": "What is it?"}, image(urls[where])]
        response = server.http.post(CHAT, json={"messages": [{"role": "user", "content": content}]})
        check_error(response, 400, type="invalid_request_error")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    "sent", [row(20, "twice", "the-same"), row(20, "a forged line", "a\tb; INFO x"), row(20, "long", "x" * 5000)]
)
def test_ids(server: ServerProcess, sent: str) -> None:
    headers = HEADERS | {"X-Request-ID": sent}
    answers = [
        httpx.post(server.url + COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers=headers, trust_env=False)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len({answer.json()["id"] for answer in answers}) == 2
    for answer in answers:
        returned = answer.headers["x-request-id"]
        assert returned.isprintable()
        assert len(returned) <= 256
        assert returned == sent or sent not in server.log

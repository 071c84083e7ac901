"""The OpenAPI document is valid, and what is sent is what it says: no other status, media type or field."""

import copy

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from server.app import create_app
from tests.support.no_engine import NoEngine

MESSAGES = [{"role": "user", "content": "hi"}]
SHORT = {"messages": MESSAGES, "max_tokens": 2}
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {}}}
ASKED = {  # path -> bodies that are answered
    "/v1/completions": [
        {"prompt": "hi", "max_tokens": 2},
        {"prompt": ["a", "b"], "max_tokens": 2, "n": 2, "best_of": 3, "logprobs": 2, "return_token_ids": True},
        {"prompt": "hi", "max_tokens": 0, "echo": True, "logprobs": 1, "prompt_logprobs": 1},
        {"prompt": "hi", "max_tokens": 2, "stream": True, "stream_options": None},
    ],
    "/v1/chat/completions": [
        SHORT,
        {**SHORT, "logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1, "return_token_ids": True},
        {**SHORT, "max_tokens": 40, "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
        {**SHORT, "max_tokens": 40, "functions": [TOOL], "function_call": {"name": "f"}},
        {**SHORT, "stream": True},
    ],
    "/v1/responses": [
        {"input": "hi", "max_output_tokens": 2},
        {"input": "hi", "max_output_tokens": 2, "top_logprobs": 1, "reasoning": {"summary": "auto"}},
        {"input": "hi", "max_output_tokens": 40, "tools": [{"type": "function", **TOOL}], "tool_choice": "required"},
        {"input": "hi", "max_output_tokens": 2, "stream": True},
    ],
    "/v1/responses/input_tokens": [{"input": "hi"}],
    "/v1/messages": [SHORT, {**SHORT, "stream": True}],
    "/v1/messages/count_tokens": [{"messages": MESSAGES}],
    "/v1/embeddings": [
        {"input": "hi"},
        {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 8, "normalize": False, "user": None},
        {"messages": MESSAGES, "pooling": "mean", "chat_template_kwargs": {"a": 1}},
    ],
    "/v2/embed": [
        {"texts": ["hi"], "input_type": "search_query"},
        {"texts": ["hi", "a"], "embedding_types": ["base64", "binary", "ubinary"], "output_dimension": 8},
    ],
    "/v1/score": [{"text_1": "a", "text_2": ["b", {"text": "c"}]}, {"queries": ["a"], "items": "b", "text_1": None}],
    "/score": [{"data_1": "a", "data_2": "b", "max_tokens_per_doc": 9}],
    "/v1/rerank": [{"query": "a", "documents": ["b", {"text": "c"}], "top_n": None}],
    "/v2/rerank": [{"query": {"text": "a"}, "documents": "b", "return_documents": False}],
    "/rerank": [{"query": "a", "documents": ["b"]}],
    "/tokenize": [{"prompt": "hi", "return_token_strs": True}, {"messages": MESSAGES}],
    "/detokenize": [{"tokens": [1, 2]}],
}
OF_LABELS = ("/v1/classify", "/classify", "/v1/moderations")  # which this model has not
GOT = [
    *("/v1/models", "/v1/models/tiny", "/tokenizer_info", "/v1/files", "/v1/batches"),
    *("/health", "/readyz", "/ping", "/livez", "/startupz", "/metrics", "/load", "/version"),
]
REFUSED = {
    ("GET", "/v1/models/{name}"): "/v1/models/x",
    ("GET", "/v1/responses/{response_id}"): "/v1/responses/resp_x",
    ("GET", "/v1/responses/{response_id}/input_items"): "/v1/responses/resp_x/input_items?limit=0",
    ("DELETE", "/v1/files/{file_id}"): "/v1/files/file-x",
    ("GET", "/v1/files"): "/v1/files?limit=x",
    ("GET", "/v1/batches/{batch_id}"): "/v1/batches/batch-x",
    **{("POST", path): path for path in [*ASKED, *OF_LABELS, "/v1/files", "/v1/batches"]},
}


@pytest.fixture(scope="module")
def document(tiny_tokenizer, tiny_llama):
    return create_app(NoEngine(), tiny_tokenizer, "tiny", tiny_llama).openapi()


@pytest.fixture(scope="module")
def check(document):
    """check(path, response) -> the answer is one that the document has for its status, and has no other field."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)

    def check(path, response):
        said = document["paths"][path][response.request.method.lower()]["responses"][str(response.status_code)]
        kind = response.headers["content-type"].split(";")[0]
        body = response.json() if kind == "application/json" else response.text
        schema = {**said["content"][kind]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(body)
        for name, header in said.get("headers", {}).items():
            assert name in response.headers, (name, header)

    return check


def test_the_document_is_valid(document):
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_says_what_it_is(document):
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        assert operation["tags"]
        assert operation["summary"]
        assert operation["description"]
        assert "422" not in operation["responses"]
        for links in (response.get("links", {}) for response in operation["responses"].values()):
            assert {link["operationId"] for link in links.values()} <= set(ids)


def test_every_route_is_in_the_document_but_the_page_and_what_head_answers(api, document):
    for route in api.app.state.routes:
        if route.include_in_schema:
            assert {method.lower() for method in route.methods} <= document["paths"][route.path_format].keys()
        else:
            assert route.methods == {"HEAD"} or route.path.split("/")[1] in ("", "page", "docs", "openapi.json")


async def test_the_document_is_made_once(api, document):
    response = await api.http.get("/openapi.json")
    assert response.json() == document
    assert api.app.document() is api.app.document()


@pytest.mark.parametrize(("path", "body"), [(path, body) for path, bodies in ASKED.items() for body in bodies])
async def test_answers_are_as_documented(api, check, path, body):
    response = await api.http.post(path, json=body)
    assert response.status_code == 200, response.text
    check(path, response)


@pytest.mark.parametrize("path", OF_LABELS)
async def test_answers_of_classifiers_are_as_documented(serve_heads, check, path):
    api = await serve_heads()
    check(path, await api.http.post(path, json={"input": ["hi", "a"]}))


@pytest.mark.parametrize("url", GOT)
async def test_what_is_got_is_as_documented(api, check, url):
    response = await api.http.get(url)
    assert response.status_code == 200
    check(url.replace("/tiny", "/{name}"), response)


@pytest.mark.parametrize(("operation", "url"), REFUSED.items(), ids=str)
async def test_refusals_are_as_documented(api, check, operation, url):
    method, path = operation
    response = await api.http.request(method, url, json={"unknown": 1} if method == "POST" else None)
    assert 400 <= response.status_code < 500
    check(path, response)


async def test_what_is_not_ready_is_as_documented(serve, document):
    api, said = await serve(run=False), document["paths"]
    for method, path, body in (("GET", "/readyz", None), ("POST", "/v1/completions", {"prompt": "hi"})):
        response = await api.http.request(method, path, json=body)
        assert response.status_code == 503
        assert response.headers.keys() >= {"retry-after"}
        assert said[path][method.lower()]["responses"]["503"]["headers"].keys() == {"Retry-After"}


async def test_a_file_and_its_batch_are_as_documented(api, check):
    line = '{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi"}}'
    uploaded = await api.http.post("/v1/files", files={"file": ("lines.jsonl", line)}, data={"purpose": "batch"})
    check("/v1/files", uploaded)
    file_id = uploaded.json()["id"]
    check("/v1/files/{file_id}", await api.http.get(f"/v1/files/{file_id}"))
    check("/v1/files/{file_id}/content", await api.http.get(f"/v1/files/{file_id}/content"))
    asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = await api.http.post("/v1/batches", json=asked)
    check("/v1/batches", batch)
    check("/v1/batches/{batch_id}", await api.http.get(f"/v1/batches/{batch.json()['id']}"))
    check("/v1/batches/{batch_id}/cancel", await api.http.post(f"/v1/batches/{batch.json()['id']}/cancel"))
    check("/v1/files", await api.http.get("/v1/files"))
    check("/v1/batches", await api.http.get("/v1/batches"))
    check("/v1/files/{file_id}", await api.http.delete(f"/v1/files/{file_id}"))


async def test_a_stored_response_is_as_documented(api, check):
    path = "/v1/responses/{response_id}"
    url = f"/v1/responses/{(await api.http.post('/v1/responses', json=ASKED['/v1/responses'][0])).json()['id']}"
    check(path, await api.http.get(url))
    check(f"{path}/input_items", await api.http.get(f"{url}/input_items"))
    check(f"{path}/cancel", await api.http.post(f"{url}/cancel"))
    check(path, await api.http.delete(url))


@pytest.mark.parametrize("path", ASKED)
async def test_examples_are_answered(api, document, path):
    example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    response = await api.http.post(path, json=example)
    assert response.status_code == 200, response.text


async def test_null_and_values_that_ask_for_nothing_are_taken_as_documented(api, document):
    asked = {**SHORT, "n": None, "use_beam_search": False, "length_penalty": 1.0, "metadata": None, "stop": None}
    schema = {"$ref": "#/components/schemas/ChatCompletionRequest", "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(asked)
    assert (await api.http.post("/v1/chat/completions", json=asked)).status_code == 200

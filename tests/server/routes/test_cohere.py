"""POST /v2/embed with a fake engine: Cohere's shapes, in which an embedding is that of /v1/embeddings."""

import base64
import dataclasses
import struct

import pytest

from server.heads.defaults import EmbeddingDefaults
from tests.server.conftest import check_error

PATH = "/v2/embed"
VECTOR = [0.5, -0.5, 0.5, -0.5, 0.0, 0.0, 0.0, -0.0]
ASKED = {"model": "tiny", "texts": ["abc", "d"], "input_type": "search_document"}


async def test_the_answer_is_coheres(serve_heads):
    api = await serve_heads(lambda _: VECTOR, info={"hidden_size": 8})
    answer = await api.ask(PATH, **ASKED, embedding_types=["ubinary", "float", "binary", "base64"])
    assert answer.pop("id").startswith("embd-")
    packed = base64.b64encode(struct.pack("<8f", *VECTOR)).decode()
    assert answer == {
        "texts": ["abc", "d"],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 4}},
        "embeddings": {
            "ubinary": [[0b10101111]] * 2,
            "float": [VECTOR] * 2,
            "binary": [[0b10101111 - 128]] * 2,
            "base64": [packed] * 2,
        },
    }


async def test_what_is_asked_is_what_v1_embeddings_has(serve_heads, ids_of):
    api = await serve_heads(lambda _: [3.0, 4.0], info={"hidden_size": 2})
    for said, kept in (
        ({}, "abcd"),
        ({"max_tokens": 2}, "ab"),
        ({"max_tokens": 2, "truncate": "START"}, "cd"),
        ({"truncate": "NONE"}, "abcd"),
        ({"priority": 3}, "abcd"),
    ):
        answer = await api.ask(PATH, texts=["abcd"], output_dimension=1, **said)
        assert answer["embeddings"] == {"float": [[1.0]]}
        assert api.prompts[-1] == ids_of(kept)
    assert api.engine.requests[-1].scheduling.priority == 3


@pytest.mark.parametrize(
    ("prompts", "kind", "begin"),
    [
        ({}, None, ""),
        ({}, "search_query", ""),
        ({"query": "q: ", "document": ""}, "search_query", "q: "),
        ({"query": "q: ", "document": ""}, "query", "q: "),
        ({"query": "q: ", "passage": "p: "}, "search_document", "p: "),
        ({"query": "q: "}, None, ""),
    ],
)
async def test_a_checkpoints_prompt_goes_before_each_text(serve_heads, ids_of, prompts, kind, begin):
    api = await serve_heads()
    state = api.app.state.server
    api.app.state.server = dataclasses.replace(state, embedding_defaults=EmbeddingDefaults(prompts=prompts))
    assert (await api.ask(PATH, texts=["ab"], input_type=kind))["texts"] == ["ab"]
    assert api.prompts == [ids_of(begin + "ab")]


@pytest.mark.parametrize(
    ("said", "param", "message"),
    [
        ({"texts": []}, "texts", "at least 1"),
        ({"texts": ["a" * 99], "truncate": "NONE"}, "texts", "maximum context length is 64"),
        ({"texts": ["a"] * 3000}, "texts", "'texts' has 3000 entries"),
        ({"output_dimension": 99}, "output_dimension", "'output_dimension' is 99"),
        ({"truncate": "NONE", "max_tokens": 3}, "max_tokens", "cuts texts"),
        ({"input_type": "image"}, "input_type", "valid are 'search_document'"),
        ({"embedding_types": ["int8"]}, "embedding_types", "'float', 'base64', 'binary' or 'ubinary'"),
        ({"embedding_types": ["binary"]}, "embedding_types", "8 numbers"),
        ({"images": ["data:"]}, "images", "Unsupported parameter"),
        ({"model": "other"}, "model", "does not exist"),
    ],
)
async def test_what_is_refused_is_named_as_cohere_names_it(serve_heads, said, param, message):
    api = await serve_heads()
    response = await api.http.post(PATH, json={"texts": ["a"], **said})
    assert message in check_error(response, 404 if param == "model" else 400, param=param)["message"]

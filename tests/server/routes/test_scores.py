"""POST /v1/score and /v1/rerank with a fake engine: the shapes of vLLM, Jina and Cohere; cosines and heads."""

import math

import pytest

from tests.server.conftest import check_error

SCORE, RERANK = "/v1/score", "/v1/rerank"
CROSS = {"tasks": ("classify",), "labels": ("relevant",)}


@pytest.fixture
def embeddings(scripted):
    """Texts with these cosines to `q`: 1, 0, -1 and 0.6."""
    return scripted({"q": [2.0, 0.0], "same": [5.0, 0.0], "none": [0.0, 1.0], "anti": [-1.0, 0.0], "some": [3.0, 4.0]})


def scores(answer):
    return [data["score"] for data in answer["data"]]


@pytest.mark.parametrize("path", [SCORE, "/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_the_answer_is_vllms_by_every_name(serve_heads, embeddings, path, names):
    api = await serve_heads(embeddings)
    answer = await api.ask(path, **dict(zip(names, ["q", ["same", "some"]], strict=True)))
    assert answer.pop("id").startswith("score-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "list",
        "model": "tiny",
        "data": [
            {"index": 0, "object": "score", "score": 1.0},
            {"index": 1, "object": "score", "score": pytest.approx(0.6)},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},  # the query once
    }


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("q", "same", [1]),
        (["q"], ["same", "none", "anti"], [1, 0, -1]),
        (["q", "none"], ["anti", "some"], [-1, 0.8]),
        ({"text": "q"}, [{"text": "same"}, "none"], [1, 0]),
    ],
    ids=repr,
)
async def test_one_or_as_many_as_there_are(serve_heads, embeddings, first, second, expected):
    api = await serve_heads(embeddings)
    assert scores(await api.ask(SCORE, text_1=first, text_2=second)) == pytest.approx(expected)


async def test_a_head_of_one_label_scores_the_pair(serve_heads, ids_of):
    api = await serve_heads(lambda request: [len(request.prompt_token_ids) - 4.0], info=CROSS)
    answer = await api.ask(SCORE, text_1="qu", text_2=["do", "cum"])
    assert scores(answer) == pytest.approx([0.5, 1 / (1 + math.exp(-1))])
    assert api.prompts == [ids_of("qudo"), ids_of("qucum")]
    assert answer["usage"]["prompt_tokens"] == 9  # the query with each
    assert scores(await api.ask(SCORE, text_1="qu", text_2="cum", use_activation=False)) == [1.0]


async def test_a_regression_is_not_squashed(serve_heads):
    api = await serve_heads(lambda _: [7.0], info={**CROSS, "label_activation": "none"})
    assert scores(await api.ask(SCORE, text_1="a", text_2="b")) == [7.0]


async def test_a_pair_is_joined_by_the_tokenizers_template(serve_heads, ids_of, monkeypatch, tiny_tokenizer):
    monkeypatch.setattr(tiny_tokenizer, "_frame_of_pair", [[256], [257, 257], [257]], raising=False)
    api = await serve_heads(lambda _: [1.0], info=CROSS)
    await api.ask(SCORE, text_1="abcd", text_2=["efghij"])
    assert api.prompts[-1] == [256, *ids_of("abcd"), 257, 257, *ids_of("efghij"), 257]
    await api.ask(SCORE, text_1="abcd", text_2=["efghij"], max_tokens_per_query=2, max_tokens_per_doc=1)
    assert api.prompts[-1] == [256, *ids_of("ab"), 257, 257, *ids_of("e"), 257]
    for keep, query, document in ((13, "abcd", "efghi"), (11, "abc", "efgh"), (8, "ab", "ef"), (99, "abcd", "efghij")):
        await api.ask(SCORE, text_1="abcd", text_2=["efghij"], truncate_prompt_tokens=keep)
        assert api.prompts[-1] == [256, *ids_of(query), 257, 257, *ids_of(document), 257]


async def test_each_side_is_cut_of_its_own(serve_heads, ids_of):
    api = await serve_heads()
    await api.ask(SCORE, queries="abcd", documents=["efgh", "i"], max_tokens_per_query=3, max_tokens_per_doc=2)
    assert api.prompts == [ids_of("abc"), ids_of("ef"), ids_of("i")]


@pytest.mark.parametrize("path", [RERANK, "/rerank", "/v2/rerank"])
async def test_ranks_are_jinas_and_coheres(serve_heads, embeddings, path):
    api = await serve_heads(embeddings)
    answer = await api.ask(path, model="tiny", query="q", documents=["none", {"text": "some"}, "same", "anti"])
    assert answer.pop("id").startswith("rerank-")
    assert answer == {
        "model": "tiny",
        "results": [
            {"index": 2, "relevance_score": 1.0, "document": {"text": "same"}},
            {"index": 1, "relevance_score": pytest.approx(0.6), "document": {"text": "some"}},
            {"index": 0, "relevance_score": 0.0, "document": {"text": "none"}},
            {"index": 3, "relevance_score": -1.0, "document": {"text": "anti"}},
        ],
        "usage": {"prompt_tokens": 17, "total_tokens": 17},
    }


async def test_the_best_are_given_without_their_texts(serve_heads, embeddings):
    api = await serve_heads(embeddings)
    answer = await api.ask(RERANK, query="q", documents=["none", "same", "same"], top_n=2, return_documents=False)
    assert answer["results"] == [{"index": 1, "relevance_score": 1.0}, {"index": 2, "relevance_score": 1.0}]
    assert len((await api.ask(RERANK, query="q", documents=["none"], top_n=9))["results"]) == 1


TWO = {"text_1": "a", "text_2": "b"}
REFUSED = [
    (SCORE, {}, "text_1"),
    (SCORE, {"text_1": "a"}, "text_1"),
    (SCORE, {"text_1": "a", "documents": "b"}, "text_1"),
    (SCORE, {**TWO, "queries": "a"}, "text_1"),
    (SCORE, {"queries": "a", "documents": "b", "items": "c"}, "queries"),
    (SCORE, {"text_1": [], "text_2": "b"}, "text_1"),
    (SCORE, {"text_1": "a", "text_2": []}, "text_2"),
    (SCORE, {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
    (SCORE, {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_2"),
    (SCORE, {"text_1": "a", "text_2": [5]}, "text_2"),
    (SCORE, {"text_1": "a", "text_2": [["b"]]}, "text_2"),
    (SCORE, {"text_1": "a", "text_2": {"text": "b", "title": "c"}}, "text_2"),
    (SCORE, {"text_1": "a", "text_2": "b" * 65}, "text_2"),
    (SCORE, {**TWO, "top_n": 1}, "top_n"),
    (SCORE, {**TWO, "max_tokens_per_doc": -1}, "max_tokens_per_doc"),
    (SCORE, {**TWO, "instruction": "find"}, "instruction"),
    (RERANK, {}, "query"),
    (RERANK, {"query": "q"}, "documents"),
    (RERANK, {"query": "q", "documents": []}, "documents"),
    (RERANK, {"query": ["q"], "documents": ["a"]}, "query"),
    (RERANK, {"query": "q", "documents": [None]}, "documents"),
    (RERANK, {"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
    (RERANK, {"query": "q", "documents": ["a"], "rank_fields": ["text"]}, "rank_fields"),
    (RERANK, {"query": "q", "documents": ["a"], "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED, ids=lambda value: repr(value)[:60])
@pytest.mark.parametrize("info", [{}, CROSS], ids=["cosine", "head"])
async def test_what_is_not_valid_is_refused_by_its_field(serve_heads, path, body, param, info):
    api = await serve_heads(info=info)
    check_error(await api.http.post(path, json=body), 400, type="invalid_request_error", param=param)
    assert api.engine.requests == []


async def test_an_empty_text_has_no_embedding_but_may_stand_in_a_pair(serve_heads, ids_of):
    body = {"text_1": "a", "text_2": ["b", ""]}
    check_error(await (await serve_heads()).http.post(SCORE, json=body), 400, param="text_2")
    api = await serve_heads(info=CROSS)
    await api.ask(SCORE, **body)
    assert api.prompts == [ids_of("ab"), ids_of("a")]


@pytest.mark.parametrize(("path", "name"), [(SCORE, "Score"), (RERANK, "Rerank (Score)")])
async def test_a_model_that_cannot_score_says_so(serve_heads, path, name):
    api = await serve_heads(info={"tasks": ("classify",)})
    body = {**TWO} if path == SCORE else {"query": "q", "documents": ["a"]}
    error = check_error(await api.http.post(path, json=body), 400, param="model", code="task_not_supported")
    assert error["message"].startswith(f"The model does not support {name} API.")


async def test_a_long_query_with_many_documents_counts_with_each(serve_heads):
    api = await serve_heads(info=CROSS, config={"max_queued_tokens": 100})
    body = {"query": "q" * 30, "documents": ["a"] * 20}
    check_error(await api.http.post(RERANK, json=body), 400, param="documents")
    assert len((await api.ask(RERANK, **body | {"documents": ["a"] * 5}))["results"]) == 5


async def test_the_number_of_pairs_is_bounded_by_a_flag(serve_heads):
    api = await serve_heads(config={"max_inputs": 3})
    check_error(await api.http.post(RERANK, json={"query": "q", "documents": ["a"] * 4}), 400, param="documents")
    assert len((await api.ask(RERANK, query="q", documents=["a"] * 3))["results"]) == 3
    assert len(scores(await api.ask(SCORE, queries=["q"] * 3, documents=["a"] * 3))) == 3

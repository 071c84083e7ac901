"""Embeddings, classes and scores of real models over HTTP are those of transformers, beside streams too."""

import asyncio

import pytest
import torch
from transformers import LlamaForSequenceClassification

from tests.server.conftest import COMPLETIONS
from tests.support import tiny
from tests.support.running import load

TEXTS = ["three rivers", "a", "the Nile, the Amazon and the Yangtze " * 6]
THREE = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
ONE = {"id2label": {0: "relevant"}, "label2id": {"relevant": 0}}


@pytest.fixture
def serve_classifier(serve, make_llama):
    """await serve_classifier(**config) -> an API of a model with a classification head, and transformers' model."""

    async def start(**config):
        folder = make_llama(kind=LlamaForSequenceClassification, pad_token_id=0, **config)
        api = await serve(engine=load(folder))
        return api, LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    return start


async def ask(api, path, **body):
    response = await api.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


async def embeddings(api, **body):
    return [torch.tensor(data["embedding"]) for data in (await ask(api, "/v1/embeddings", **body))["data"]]


@pytest.mark.parametrize("pooling", ["last", "mean"])
async def test_embeddings_are_transformers_beside_streams(api, tiny_llama, ids_of, pooling):
    model = tiny.reference(tiny_llama).model
    streams = [
        asyncio.create_task(api.stream(COMPLETIONS, prompt="ab", max_tokens=60, ignore_eos=True)) for _ in range(3)
    ]
    vectors = await embeddings(api, input=TEXTS, pooling=pooling)
    raw = await embeddings(api, input=TEXTS, pooling=pooling, normalize=False, dimensions=10)
    for text, vector, begin in zip(TEXTS, vectors, raw, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([ids_of(text)])).last_hidden_state[0]
        expected = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(vector, torch.nn.functional.normalize(expected, dim=0), atol=1e-4, rtol=0)
        torch.testing.assert_close(begin, expected[:10], atol=1e-3, rtol=1e-4)
    for stream in streams:
        await stream


async def test_a_salt_keeps_prefixes_of_embeddings_apart_and_changes_nothing(api):
    first = await embeddings(api, input=TEXTS, cache_salt="a")
    for again in (await embeddings(api, input=TEXTS, cache_salt="a"), await embeddings(api, input=TEXTS)):
        for one, other in zip(first, again, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", None])
async def test_classes_are_transformers(serve_classifier, ids_of, problem):
    api, model = await serve_classifier(**THREE, problem_type=problem)
    answer = await ask(api, "/v1/classify", input=TEXTS)
    for text, data in zip(TEXTS, answer["data"], strict=True):
        logits = logits_of(model, ids_of(text))
        probs = logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(-1)
        assert data["probs"] == pytest.approx(probs.tolist(), abs=1e-4)
        assert data["label"] == THREE["id2label"][int(logits.argmax())]
    assert (await ask(api, "/v1/score", text_1="a", text_2="a"))["data"][0]["score"] == pytest.approx(1)


async def test_a_cross_encoders_scores_are_transformers(serve_classifier, ids_of):
    api, model = await serve_classifier(**ONE)
    scores = [logits_of(model, ids_of("query" + text)).sigmoid().item() for text in TEXTS]
    answer = await ask(api, "/v1/score", text_1="query", text_2=TEXTS)
    assert [data["score"] for data in answer["data"]] == pytest.approx(scores, abs=1e-4)
    results = (await ask(api, "/v1/rerank", query="query", documents=TEXTS))["results"]
    assert [result["index"] for result in results] == sorted(range(3), key=scores.__getitem__, reverse=True)

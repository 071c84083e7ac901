"""POST /v1/classify and /classify with a fake engine: vLLM's shapes, and how probabilities come about."""

import math

import pytest

from tests.server.conftest import check_error

PATH = "/v1/classify"


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("path", [PATH, "/classify"])
async def test_the_answer_is_vllms(serve_heads, scripted, path):
    api = await serve_heads(scripted({"good": [0.0, math.log(3)], "bad": [math.log(4), 0.0]}))
    answer = await api.ask(path, input=["good", "bad"], model="tiny")
    assert answer.pop("id").startswith("classify-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "list",
        "model": "tiny",
        "data": [
            {"index": 0, "label": "yes", "probs": pytest.approx([0.25, 0.75]), "num_classes": 2},
            {"index": 1, "label": "no", "probs": pytest.approx([0.8, 0.2]), "num_classes": 2},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


@pytest.mark.parametrize(
    ("activation", "used", "expected"),
    [
        ("softmax", True, [1 / (1 + math.e), math.e / (1 + math.e)]),
        ("sigmoid", True, [sigmoid(1), sigmoid(2)]),
        ("none", True, [1, 2]),
        ("softmax", False, [1, 2]),
    ],
)
async def test_logits_become_what_the_checkpoint_says(serve_heads, activation, used, expected):
    api = await serve_heads(lambda _: [1.0, 2.0], info={"label_activation": activation})
    [data] = (await api.ask(PATH, input="a", use_activation=used))["data"]
    assert data["probs"] == pytest.approx(expected)
    assert data["label"] == "yes"


async def test_a_conversation_can_be_classified_by_a_model_that_cannot_generate(serve_heads, reference_tokenizer):
    api = await serve_heads(lambda _: [1.0, 2.0], info={"tasks": ("classify",)})
    await api.ask(PATH, messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    [prompt] = api.prompts
    assert reference_tokenizer.decode(prompt, skip_special_tokens=False) == "<|bos|>[user]a[assistant]b"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [258]}, "input"),
        ({"input": "a" * 65}, "input"),
        ({"input": "a", "dimensions": 2}, "dimensions"),
        ({"input": "a", "pooling": "mean"}, "pooling"),
        ({"input": "a", "use_activation": 1}, "use_activation"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_what_is_not_valid_is_refused_by_its_field(serve_heads, body, param):
    api = await serve_heads()
    check_error(await api.http.post(PATH, json=body), 400, type="invalid_request_error", param=param)
    assert api.engine.requests == []


async def test_a_model_without_labels_says_so(serve_heads):
    api = await serve_heads(info={"tasks": ("generate", "embed")})
    error = check_error(await api.http.post(PATH, json={"input": "a"}), 400, param="model", code="task_not_supported")
    assert error["message"].startswith("The model does not support Classification API.")

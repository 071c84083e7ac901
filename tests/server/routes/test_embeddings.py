"""POST /v1/embeddings with a fake engine: OpenAI's shapes, vLLM's extensions, and what is refused."""

import base64
import math
import struct

import pytest

from tests.server.conftest import check_error

PATH = "/v1/embeddings"


def values(request):
    """Tell each prompt's length and last token."""
    return [float(len(request.prompt_token_ids)), float(request.prompt_token_ids[-1])]


def unit(*vector):
    return pytest.approx([value / math.hypot(*vector) for value in vector])


async def test_the_answer_is_openais(serve_heads):
    api = await serve_heads(values)
    answer = await api.ask(PATH, input=["abc", "d"], model="tiny", user="me")
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": unit(3, ord("c") - 33)},
            {"object": "embedding", "index": 1, "embedding": unit(1, ord("d") - 33)},
        ],
        "model": "tiny",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), ([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])],
    ids=repr,
)
async def test_every_form_of_input_is_taken(serve_heads, ids_of, given, prompts):
    api = await serve_heads(values)
    await api.ask(PATH, input=given)
    assert api.prompts == [ids_of(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


async def test_base64_is_little_endian_and_says_the_same_numbers(serve_heads):
    api = await serve_heads(lambda _: [0.1, 0.7])
    [plain] = (await api.ask(PATH, input="a"))["data"]
    [packed] = (await api.ask(PATH, input="a", encoding_format="base64"))["data"]
    assert list(struct.unpack("<2f", base64.b64decode(packed["embedding"]))) == plain["embedding"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, unit(3, 4, 12)),
        ({"dimensions": 3}, unit(3, 4, 12)),
        ({"dimensions": 2}, unit(3, 4)),
        ({"dimensions": 1}, [1.0]),
        ({"dimensions": 2, "normalize": False}, [3, 4]),
        ({"use_activation": False}, [3, 4, 12]),
        ({"use_activation": True, "normalize": True}, unit(3, 4, 12)),
        (
            {"encoding_format": None, "dimensions": None, "embed_dtype": "float32", "endianness": "little"},
            unit(3, 4, 12),
        ),
    ],
    ids=repr,
)
async def test_embeddings_are_cut_first_and_then_scaled(serve_heads, options, expected):
    api = await serve_heads(lambda _: [3.0, 4.0, 12.0], info={"hidden_size": 3})
    [data] = (await api.ask(PATH, input="a", **options))["data"]
    assert data["embedding"] == expected


async def test_a_vector_of_zeros_stays_one(serve_heads):
    api = await serve_heads(lambda _: [0.0, 0.0])
    assert (await api.ask(PATH, input="a"))["data"][0]["embedding"] == [0, 0]


@pytest.mark.parametrize(
    ("flag", "asked", "pooling"), [("auto", None, "last"), ("mean", None, "mean"), ("mean", "last", "last")]
)
async def test_the_request_chooses_the_pooling_before_the_flag(serve_heads, flag, asked, pooling):
    api = await serve_heads(values, config={"pooling": flag})
    await api.ask(PATH, input="a", pooling=asked)
    assert api.engine.requests[0].pooling.pooling == pooling


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, "abc"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, "xyz"),
        ({"truncate_prompt_tokens": 99}, "abcdefghijklmnopqrstuvwxyz"),
    ],
)
async def test_texts_are_cut_where_the_request_says(serve_heads, ids_of, options, kept):
    api = await serve_heads(values)
    text = "abcdefghijklmnopqrstuvwxyz"
    for given in (text, ids_of(text)):
        await api.ask(PATH, input=given, **options)
        assert api.prompts[-1] == ids_of(kept)


async def test_a_text_of_any_length_is_cut_to_the_context(serve_heads):
    api = await serve_heads(values)
    answer = await api.ask(PATH, input="x" * 20_000, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 64


async def test_special_tokens_stand_around_what_is_left(serve_heads, ids_of, monkeypatch, tiny_tokenizer):
    monkeypatch.setattr(tiny_tokenizer, "_frame", [[256], [257]], raising=False)
    api = await serve_heads(values)
    await api.ask(PATH, input=["ab", "abcdef"], truncate_prompt_tokens=4)
    assert api.prompts == [[256, *ids_of("ab"), 257], [256, *ids_of("ab"), 257]]
    await api.ask(PATH, input="abcdef", add_special_tokens=False, truncate_prompt_tokens=4)
    assert api.prompts[-1] == ids_of("abcd")
    error = check_error(await api.http.post(PATH, json={"input": "ab", "truncate_prompt_tokens": 2}), 400)
    assert error["param"] == "truncate_prompt_tokens"


async def test_a_conversation_is_embedded_as_its_template_writes_it(serve_heads, reference_tokenizer):
    api = await serve_heads(values)
    messages = [{"role": "user", "content": "hi"}]
    await api.ask(PATH, messages=messages)
    await api.ask(PATH, messages=messages, add_generation_prompt=True)
    written = [reference_tokenizer.decode(prompt, skip_special_tokens=False) for prompt in api.prompts]
    assert written == ["<|bos|>[user]hi", "<|bos|>[user]hi[assistant]"]


REFUSED = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": ""}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": [[5], []]}, "input"),
    ({"input": ["a", [5]]}, "input"),
    ({"input": [["a"]]}, "input"),
    ({"input": [[[5]]]}, "input"),
    ({"input": 5}, "input"),
    ({"input": {"text": "a"}}, "input"),
    ({"input": [True]}, "input"),
    ({"input": [1.0]}, "input"),
    ({"input": [258]}, "input"),
    ({"input": [[1], [1 << 40]]}, "input"),
    ({"input": [-1]}, "input"),
    ({"input": "a" * 65}, "input"),
    ({"input": [5] * 65}, "input"),
    ({"input": "a" * 100_000}, "input"),
    ({"input": "a", "messages": [{"role": "user", "content": "hi"}]}, "input"),
    ({"input": "a", "add_generation_prompt": True}, "add_generation_prompt"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a" * 65}]}, "messages"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": 3}, "dimensions"),
    ({"input": "a", "dimensions": "2"}, "dimensions"),
    ({"input": "a", "dimensions": 1.5}, "dimensions"),
    ({"input": "a", "encoding_format": "bytes"}, "encoding_format"),
    ({"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
    ({"input": "a", "endianness": "big"}, "endianness"),
    ({"input": "a", "pooling": "max"}, "pooling"),
    ({"input": "a", "normalize": True, "use_activation": False}, "use_activation"),
    ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"input": "a", "truncation_side": "middle"}, "truncation_side"),
    ({"input": "a", "padding": "max_length"}, "padding"),
    ({"input": "a", "temperature": 1}, "temperature"),
    ({"input": "a", "stream": True}, "stream"),
    ({"input": "a", "user": "u" * 2000}, "user"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=lambda value: repr(value)[:60])
async def test_what_is_not_valid_is_refused_by_its_field(serve_heads, body, param):
    api = await serve_heads(values)
    check_error(await api.http.post(PATH, json=body), 400, type="invalid_request_error", param=param)
    assert api.engine.requests == []
    assert api.app.state.server.admission.num_prompts == 0


@pytest.mark.parametrize("field", ["dimensions", "timeout", "priority"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"'])
async def test_numbers_that_are_none_are_refused(serve_heads, field, value):
    api = await serve_heads(values)
    response = await api.http.post(PATH, content=f'{{"input": "a", "{field}": {value}}}')
    check_error(response, 400)


async def test_half_a_surrogate_pair_is_refused(serve_heads):
    api = await serve_heads(values)
    check_error(await api.http.post(PATH, content=b'{"input": ["a", "\\ud800"]}'), 400)


async def test_other_models_and_tasks_are_refused_in_words_that_clients_know(serve_heads):
    api = await serve_heads(values, info={"tasks": ("generate",)})
    check_error(await api.http.post(PATH, json={"input": "a", "model": "other"}), 404, param="model")
    error = check_error(await api.http.post(PATH, json={"input": "a"}), 400, code="task_not_supported", param="model")
    assert error["message"] == (
        "The model does not support Embeddings API. This model cannot embed text; it can generate text."
    )


async def test_the_number_of_texts_is_bounded_by_a_flag(serve_heads):
    api = await serve_heads(values, config={"max_inputs": 3})
    assert len((await api.ask(PATH, input=["a"] * 3))["data"]) == 3
    error = check_error(await api.http.post(PATH, json={"input": ["a"] * 4}), 400, param="input")
    assert error["message"] == "'input' has 4 entries; at most 3 are taken (--max-inputs)."


async def test_the_number_of_tokens_is_bounded_by_a_flag(serve_heads):
    api = await serve_heads(values, config={"max_queued_tokens": 100})
    check_error(await api.http.post(PATH, json={"input": [[5] * 60, [5] * 60]}), 400, param="input")


async def test_two_thousand_texts_are_answered_in_their_order(serve_heads, ids_of):
    api = await serve_heads(values, config={"max_queued_requests": 5000})
    texts = [str(number) for number in range(2048)]
    answer = await api.ask(PATH, input=texts, normalize=False)
    assert [data["index"] for data in answer["data"]] == list(range(2048))
    assert [data["embedding"] for data in answer["data"]] == [[len(text), ids_of(text)[-1]] for text in texts]
    check_error(await api.http.post(PATH, json={"input": [*texts, "a"]}), 400, param="input")


async def test_tokens_count_for_the_clients_limit(serve_heads):
    api = await serve_heads(config={"client_tokens_per_minute": 60})
    answer = await api.ask(PATH, input=["x" * 50, "y" * 30])
    assert answer["usage"]["total_tokens"] == 80
    check_error(await api.http.post(PATH, json={"input": "a"}), 429, code="rate_limit_exceeded")

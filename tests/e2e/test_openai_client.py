"""The official client, sync and async, against the real command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import httpx
import openai
import pydantic
import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.e2e.server_process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30, http_client=http
    ) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx.AsyncClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30, http_client=http
    ) as client:
        yield client


def test_models_list_and_retrieve(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "deepseek-serve"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_completions_stream_what_they_answer_whole(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="Hello", logprobs=2, **GREEDY)
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 12)
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.tokens or []) == 12
    with client.completions.create(prompt="Hello", stream=True, **GREEDY) as chunks:
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_completions_take_several_prompts_and_n(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=["a", "b"], n=2, **GREEDY)
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]


def test_chats_stream_what_they_answer_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    message = whole.choices[0].message
    assert (message.role, message.refusal, message.tool_calls) == ("assistant", None, None)
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or []) == 12
    text, roles, usage = "", [], None
    with client.chat.completions.create(
        messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
    ) as chunks:
        for chunk in chunks:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                roles.append(chunk.choices[0].delta.role)
            else:
                usage = chunk.usage
    assert text == message.content
    assert roles == ["assistant"] + [None] * (len(roles) - 1)
    assert usage is not None
    assert usage.completion_tokens == 12


def test_the_clients_own_stream_helper_understands_the_chunks(client: openai.OpenAI) -> None:
    end = {"logit_bias": {"257": 100}, "extra_body": {"min_tokens": 9}}  # it takes an answer cut short for an error
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY | end)
    with client.chat.completions.stream(messages=MESSAGES, **GREEDY | end) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


async def test_the_async_client_gets_the_same(client: openai.OpenAI, async_client: openai.AsyncOpenAI) -> None:
    expected = client.completions.create(prompt="Hello", **GREEDY).choices[0].text
    whole = await async_client.completions.create(prompt="Hello", **GREEDY)
    assert whole.choices[0].text == expected
    async with await async_client.completions.create(prompt="Hello", stream=True, **GREEDY) as chunks:
        assert "".join([chunk.choices[0].text async for chunk in chunks]) == expected
    chat = await async_client.chat.completions.create(messages=MESSAGES, **GREEDY)
    async with await async_client.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY) as chat_chunks:
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in chat_chunks])
    assert text == chat.choices[0].message.content
    assert [model.id async for model in async_client.models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"suffix": "x"}, "suffix", None),
        ({"best_of": 3, "n": 4}, "best_of", None),
        ({"temperature": 3}, "temperature", None),
        ({"max_tokens": 100_000}, "max_tokens", "context_length_exceeded"),
        ({"prompt": [5000]}, "prompt", None),
        ({"prompt": ""}, "prompt", None),
    ],
    ids=repr,
)
def test_bad_requests_raise_with_the_parameters_name(
    client: openai.OpenAI, extra: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"prompt": "a", "model": "tiny"} | extra)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert caught.value.status_code == 400


def test_an_unknown_model_raises_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_a_route_that_is_not_there_raises_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a")


def test_embeddings_come_as_base64_and_as_numbers(client: openai.OpenAI) -> None:
    texts = ["three rivers", "a bicycle"]
    asked = client.embeddings.create(model="tiny", input=texts)  # which asks for base64
    assert [data.index for data in asked.data] == [0, 1]
    assert (asked.model, asked.usage.prompt_tokens, asked.usage.total_tokens) == ("tiny", 21, 21)
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    for one, other in zip(asked.data, plain.data, strict=True):
        assert list(one.embedding) == other.embedding
        assert sum(value * value for value in one.embedding) == pytest.approx(1)
    ids = [list(text.encode()) for text in texts]
    assert len(client.embeddings.create(model="tiny", input=ids, dimensions=5).data[1].embedding) == 5
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny", input="a", dimensions=1000)
    assert caught.value.param == "dimensions"


async def test_the_async_client_gets_the_same_embeddings(
    client: openai.OpenAI, async_client: openai.AsyncOpenAI
) -> None:
    expected = client.embeddings.create(model="tiny", input="a").data[0].embedding
    assert list((await async_client.embeddings.create(model="tiny", input="a")).data[0].embedding) == list(expected)


def test_a_stream_that_is_refused_raises_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(prompt=[5000], model="tiny", stream=True)


class Place(pydantic.BaseModel):
    country: Literal["France", "Peru"]
    rank: Annotated[int, pydantic.Field(ge=0, le=99)]
    is_capital: bool


def test_a_class_is_parsed_from_the_answer_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": MESSAGES,
        "response_format": Place,
        "max_tokens": 2000,
        "seed": 3,
    }
    answer = client.chat.completions.parse(**asked)
    assert isinstance(answer.choices[0].message.parsed, Place)
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


def test_an_answer_that_is_cut_off_is_not_parsed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Place, max_tokens=3)

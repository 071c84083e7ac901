"""best_of with a reasoning head: the choices of the largest value, which are not the likeliest ones."""

import asyncio

import pytest

from engine.protocol import PoolRequest
from tests.server.conftest import CHAT, COMPLETIONS, check_error
from tests.support.dynamic_moe_reference import DynamicMoEReference
from tests.support.running import load

PARAMS = {"seed": 5, "temperature": 1.5, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def reasoner(make_dynamic_moe):
    return make_dynamic_moe("full")


@pytest.fixture(scope="module")
def engine(reasoner):
    return load(reasoner, block_size=4)


def values_of(reference, choices):
    ids = [choice["prompt_token_ids"] + choice["token_ids"] for choice in choices]
    return [float(reference.head("reasoning", prompt)) for prompt in ids]


def mean_logprobs(choices):
    logprobs = [choice["logprobs"]["token_logprobs"] for choice in choices]
    return [sum(each) / len(each) for each in logprobs]


def ranked(choices, goodness):
    order = sorted(range(len(choices)), key=goodness.__getitem__, reverse=True)
    return [choices[number]["token_ids"] for number in order]


async def test_the_choices_of_the_largest_value_are_given(serve, engine, reasoner):
    api, reference = await serve(engine=engine), DynamicMoEReference(reasoner)
    for prompts in (["abc def"], ["abc", "uvw xyz"]):
        every = await api.complete(prompts, n=5, logprobs=0, **PARAMS)
        best = await api.complete(prompts, n=2, best_of=5, **PARAMS)
        expected, likeliest = [], []
        for first in range(0, len(every["choices"]), 5):
            choices = every["choices"][first : first + 5]
            expected += ranked(choices, values_of(reference, choices))[:2]
            likeliest += ranked(choices, mean_logprobs(choices))[:2]
        assert [choice["token_ids"] for choice in best["choices"]] == expected != likeliest
        assert [choice["index"] for choice in best["choices"]] == list(range(len(expected)))
        assert all(choice["logprobs"] is None for choice in best["choices"])
        assert best["usage"]["completion_tokens"] == every["usage"]["completion_tokens"] == len(prompts) * 5 * 6
        assert best["usage"]["prompt_tokens"] == every["usage"]["prompt_tokens"]
    await api.until_idle()


async def test_a_chat_gives_the_message_of_the_largest_value(serve, engine, reasoner):
    api, reference = await serve(engine=engine), DynamicMoEReference(reasoner)
    every = await api.chat("abc", n=5, **PARAMS)
    best = await api.chat("abc", n=2, best_of=5, **PARAMS)
    ids = [every["prompt_token_ids"] + choice["token_ids"] for choice in every["choices"]]
    values = [float(reference.head("reasoning", prompt)) for prompt in ids]
    assert [choice["token_ids"] for choice in best["choices"]] == ranked(every["choices"], values)[:2]
    message_of = {tuple(choice["token_ids"]): choice["message"] for choice in every["choices"]}
    assert all(choice["message"] == message_of[tuple(choice["token_ids"])] for choice in best["choices"])
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert best["usage"]["completion_tokens"] == 5 * 6
    check_error(await api.post(CHAT, best_of=2, stream=True), 400, param="best_of")
    await api.until_idle()


async def test_what_is_valued_comes_from_the_prefix_cache(serve, engine):
    api = await serve(engine=engine)
    before = engine.batcher.stats()
    await api.complete("a prompt of thirty characters!", best_of=3, **PARAMS)
    after = engine.batcher.stats()
    num_cached = after.num_cached_tokens - before.num_cached_tokens
    assert (
        num_cached == 2 * 28 + 3 * 32
    )  # the prompt for two choices, and for each value all full blocks before the last token


async def test_a_client_that_leaves_ends_the_values(serve, engine, monkeypatch):
    api = await serve(engine=engine)
    add, has_all, loop, valued = engine.add, asyncio.Event(), asyncio.get_running_loop(), []

    def watched(request):  # by the engine's thread; before it, the engine is still idle
        add(request)
        if isinstance(request, PoolRequest):
            valued.append(request)
            if len(valued) == 3:
                loop.call_soon_threadsafe(has_all.set)

    monkeypatch.setattr(engine, "add", watched)
    asking = asyncio.create_task(api.complete("abc", best_of=3, **PARAMS))
    await has_all.wait()
    asking.cancel()
    await api.until_idle()


async def test_a_value_that_is_no_number_is_an_error(serve, engine, monkeypatch):
    api = await serve(engine=engine)
    monkeypatch.setitem(engine.executor.runner.model.heads, "reasoning", lambda x: x[:, :1] * float("nan"))
    check_error(await api.post(COMPLETIONS, best_of=2, max_tokens=2), 500, type="server_error")
    await api.until_idle()


async def test_what_is_valued_has_the_modalities_of_its_prompt(serve, engine, reasoner):
    api, reference = await serve(engine=engine), DynamicMoEReference(reasoner)
    every = (await api.complete("x = 1", modality="code", n=4, **PARAMS))["choices"]
    best = (await api.complete("x = 1", modality="code", best_of=4, **PARAMS))["choices"]
    ids = [choice["prompt_token_ids"] + choice["token_ids"] for choice in every]
    values = [float(reference.head("reasoning", prompt, [1] * len(prompt))) for prompt in ids]
    assert [choice["token_ids"] for choice in best] == ranked(every, values)[:1]
    assert ranked(every, values) != ranked(every, values_of(reference, every)), "as text, others would be the best"
    await api.until_idle()

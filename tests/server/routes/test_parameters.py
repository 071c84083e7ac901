"""Parameters of completions and chats beyond the common ones: each does what it says."""

import asyncio

import pytest
import torch

from server.text.fill_in_middle import FillInMiddle
from tests.server.conftest import CHAT, COMPLETIONS, check_error
from tests.support import tiny

GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def logprobs_of(tiny_llama):
    """logprobs_of(ids) -> transformers' logprobs of what follows each token."""
    model = tiny.reference(tiny_llama)

    def compute(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    return compute


def check_prompt_logprobs(written, ids, logprobs_PV, count):
    """Assert that these are the prompt's logprobs as vLLM writes them, and transformers' values."""
    assert written[0] is None
    assert len(written) == len(ids)
    for position, entries in enumerate(written[1:]):
        expected_V = logprobs_PV[position]
        ranks = expected_V.argsort(descending=True).tolist()
        token_id = ids[position + 1]
        assert list(entries) == [str(i) for i in dict.fromkeys([token_id, *ranks[:count]])]
        for name, entry in entries.items():
            assert entry["logprob"] == pytest.approx(float(expected_V[int(name)]), abs=1e-3)
            assert entry["rank"] == 1 + ranks.index(int(name))
            assert isinstance(entry["decoded_token"], str)


async def test_prompt_logprobs_of_completions_are_transformers(api, ids_of, logprobs_of):
    prompts = [ids_of("hello é"), ids_of("ab")]
    answer = await api.complete(prompts, n=2, max_tokens=2, prompt_logprobs=3, **GREEDY)
    for choice in answer["choices"]:
        ids = prompts[choice["index"] // 2]
        check_prompt_logprobs(choice["prompt_logprobs"], ids, logprobs_of(ids), 3)
        assert choice["logprobs"] is None


async def test_prompt_logprobs_of_a_chat_stand_beside_its_choices(api, logprobs_of):
    answer = await api.chat("hello", n=2, max_tokens=2, prompt_logprobs=0, return_token_ids=True)
    ids = answer["prompt_token_ids"]
    check_prompt_logprobs(answer["prompt_logprobs"], ids, logprobs_of(ids), 0)


async def test_prompt_logprobs_and_echo_keep_their_own_counts(api):
    choice = await api.choice("hello", echo=True, logprobs=1, prompt_logprobs=4, max_tokens=1, **GREEDY)
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"][1:])
    assert all(len(entries) in (4, 5) for entries in choice["prompt_logprobs"][1:])


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs_computes_the_prompt_once_for_all_choices(api, monkeypatch, stream):
    rows, compute = [], api.engine.executor.execute

    def noted(plan):
        rows.append(sum(item.num_tokens for item in plan.scheduled))
        return compute(plan)

    monkeypatch.setattr(api.engine.executor, "execute", noted)
    body = {"prompt": "unheard of " * 30, "echo": True, "logprobs": 0, "n": 8, "max_tokens": 1, "seed": 1}
    if stream:
        chunks = await api.stream(COMPLETIONS, **body)
        first = {c["index"]: c for chunk in reversed(chunks) for c in chunk["choices"]}
    else:
        first = {choice["index"]: choice for choice in (await api.ask(COMPLETIONS, **body))["choices"]}
    reports = [first[i]["logprobs"]["token_logprobs"][:330] for i in range(8)]
    assert all(report == reports[0] for report in reports)
    assert reports[0][0] is None
    assert sum(rows) < 330 + 8 * 32


async def test_best_of_gives_the_likeliest_and_counts_all(api):
    params = {"seed": 11, "temperature": 1, "max_tokens": 12, "ignore_eos": True}
    every = await api.complete("abc", n=6, logprobs=0, **params)
    means = {}
    for choice in every["choices"]:
        logprobs = choice["logprobs"]["token_logprobs"]
        means[choice["text"]] = sum(logprobs) / len(logprobs)
    best = await api.complete("abc", n=2, best_of=6, **params)
    assert [choice["text"] for choice in best["choices"]] == sorted(means, key=means.get, reverse=True)[:2]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert best["usage"]["completion_tokens"] == 6 * 12


async def test_best_of_ranks_the_choices_of_each_prompt(api):
    params = {"seed": 3, "max_tokens": 4, "ignore_eos": True, "best_of": 3}
    together = await api.complete(["abc", "xyz"], **params)
    assert [choice["index"] for choice in together["choices"]] == [0, 1]
    assert together["usage"]["completion_tokens"] == 2 * 3 * 4
    assert await api.stream(COMPLETIONS, best_of=2, n=2, max_tokens=2)


async def test_a_suffix_needs_tokens_for_it(api):
    error = check_error(await api.post(COMPLETIONS, suffix="end"), 400, param="suffix")
    assert "no fill-in-the-middle tokens" in error["message"]


async def test_a_suffix_stands_behind_the_prefix_in_the_models_own_tokens(api, monkeypatch, ids_of):
    monkeypatch.setattr(api.tokenizer, "fill_in_middle", FillInMiddle(prefix=1, suffix=2, middle=3))
    expected = [1, *ids_of("def f("), 2, *ids_of("return x"), 3]
    for prompt in ("def f(", ids_of("def f(")):
        choice = await api.choice(prompt, suffix="return x", return_token_ids=True, max_tokens=2, **GREEDY)
        assert choice["prompt_token_ids"] == expected
    plain = await api.choice(expected, max_tokens=2, **GREEDY)
    assert choice["text"] == plain["text"]


async def test_bad_words_are_not_written(api, path, letters):
    words = ["b", "ac", "cca"]
    for seed in range(5):
        params = letters("abc ") | {"seed": seed, "max_tokens": 60, "bad_words": words}
        choice = (await api.ask(path, **params))["choices"][0]
        text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
        assert len(text) == 60
        assert not any(word in text for word in words)


async def test_bad_words_have_a_bound_in_tokens(api, path):
    response = await api.post(path, bad_words=[f"{i:03}" + "z" * 200 for i in range(40)])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "bad_words"
    assert "at most 8192 are taken" in response.json()["error"]["message"]


async def test_only_allowed_tokens_are_written(api, path, ids_of):
    answer = await api.ask(path, allowed_token_ids=ids_of("xyz"), max_tokens=40, seed=1, return_token_ids=True)
    assert set(answer["choices"][0]["token_ids"]) == set(ids_of("xyz"))


@pytest.mark.parametrize("form", ["stop", "in a list", "stop_token_ids"])
async def test_stop_takes_token_ids_too(api, path, letters, ids_of, form):
    [comma] = ids_of(",")
    stop = {"stop": comma} if form == "stop" else {"stop": ["never", comma]} if form == "in a list" else {}
    stop = stop or {"stop_token_ids": [comma]}
    choice = (await api.ask(path, **letters("ab,") | {"seed": 4} | stop))["choices"][0]
    text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert "," not in text


@pytest.mark.parametrize(("keep", "expected"), [(3, "efg"), (1, "g"), (7, "abcdefg"), (99, "abcdefg")])
async def test_a_prompts_end_is_kept(api, ids_of, keep, expected):
    for prompt in ("abcdefg", ids_of("abcdefg")):
        answer = await api.complete(prompt, truncate_prompt_tokens=keep, return_token_ids=True, max_tokens=1)
        assert answer["choices"][0]["prompt_token_ids"] == ids_of(expected)
        assert answer["usage"]["prompt_tokens"] == len(expected)


async def test_what_the_context_leaves_is_kept(api, ids_of):
    for prompt in ("ab" * 40_000, ids_of("ab" * 1000)):
        answer = await api.complete(prompt, truncate_prompt_tokens=-1, max_tokens=12, ignore_eos=True)
        assert answer["usage"]["prompt_tokens"] == 500
    chat = await api.chat("ab" * 1000, truncate_prompt_tokens=-1, max_completion_tokens=100, ignore_eos=True)
    assert chat["usage"]["prompt_tokens"] == 412


async def test_a_salt_keeps_prefixes_apart(api, path):
    async def cached(**salt):
        body = {"prompt": "p" * 100} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "p" * 100}]}
        answer = await api.ask(path, max_tokens=1, **body | salt)
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    for salt in ({"cache_salt": "a"}, {"prompt_cache_key": "a"}, {"cache_salt": "a", "prompt_cache_key": "a"}):
        assert await cached(**salt) == 0
        assert await cached(**salt) >= 96
    assert await cached(cache_salt="other") == 0


async def test_a_final_message_is_continued(api, reference_tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Once upon "}]
    for options in ({}, {"add_generation_prompt": False}):
        body = {
            "messages": messages,
            "continue_final_message": True,
            "max_tokens": 1,
            "return_token_ids": True,
        } | options
        answer = await api.ask(CHAT, **body)
        prompt = reference_tokenizer.decode(answer["prompt_token_ids"], skip_special_tokens=False)
        assert prompt == "<|bos|>[user]hi[assistant]Once upon "


async def test_developers_speak_as_the_system(api, reference_tokenizer):
    messages = [{"role": "developer", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    answer = await api.ask(CHAT, messages=messages, max_tokens=1, return_token_ids=True)
    prompt = reference_tokenizer.decode(answer["prompt_token_ids"], skip_special_tokens=False)
    assert prompt == "<|bos|>[system]be[user]hi[assistant]"


async def test_admission_counts_every_sequence(api, monkeypatch):
    counted, admit = [], api.app.state.server.admission.admit

    def noted(*counts):
        counted.append(counts[:2])
        return admit(*counts)

    monkeypatch.setattr(api.app.state.server.admission, "admit", noted)
    await asyncio.gather(
        api.complete(["ab", "cd"], n=3, max_tokens=1),
        api.complete("ab", best_of=4, max_tokens=1),
        api.chat("hi", n=5, max_tokens=1),
    )
    assert sorted(number for number, _ in counted) == [4, 5, 6]
    assert api.app.state.server.admission.num_prompts == 0


@pytest.mark.parametrize("beside", [{"min_tokens": 6}, {"bad_words": ["ab", "b", "a"]}], ids=str)
async def test_what_a_grammar_forces_is_written_whatever_is_barred(api, path, beside):
    answer = await api.ask(path, structured_outputs={"choice": ["ab"]}, max_tokens=8, **beside)
    [choice] = answer["choices"]
    assert (choice["text"] if path == COMPLETIONS else choice["message"]["content"]) == "ab"
    assert choice["finish_reason"] == "stop"


async def test_a_grammar_says_which_tokens_are_allowed(api, path):
    response = await api.post(path, structured_outputs={"choice": ["ab"]}, allowed_token_ids=[65])
    check_error(response, 400, param="allowed_token_ids")


async def test_completions_take_the_chats_name_of_max_tokens(api):
    for limits in ({"max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 9}):
        answer = await api.complete("ab", ignore_eos=True, **limits)
        assert answer["usage"]["completion_tokens"] == 3
    error = check_error(await api.post(COMPLETIONS, max_completion_tokens=600), 400, param="max_completion_tokens")
    assert error["code"] == "context_length_exceeded"

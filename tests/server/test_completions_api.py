"""POST /v1/completions: what goes in, what comes out, streamed and whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.conftest import COMPLETIONS, check_usage, text_of
from tests.support import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from tests.server.conftest import Api

GREEDY = {"temperature": 0, "ignore_eos": True}
EOS_ID = 257


def ids_of(api: Api, text: str) -> list[int]:
    return api.tokenizer.encode(text)


async def test_an_answer_has_openais_shape(api: Api) -> None:
    answer = await api.complete("Hello", model="tiny", max_tokens=5, **GREEDY)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert isinstance(answer["created"], int)
    check_usage(answer["usage"], 5, 5)
    [choice] = answer["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")


async def test_greedy_tokens_are_the_reference_models(api: Api, tiny_llama: Path) -> None:
    answer = await api.complete("Hello", max_tokens=20, return_token_ids=True, **GREEDY)
    expected = tiny.greedy(tiny.reference(tiny_llama), ids_of(api, "Hello"), 20)
    assert answer["choices"][0]["token_ids"] == expected
    assert answer["choices"][0]["text"] == api.tokenizer.decode(expected)


async def test_the_default_is_16_tokens(api: Api) -> None:
    assert (await api.complete("a", ignore_eos=True, seed=1))["usage"]["completion_tokens"] == 16


async def test_all_four_forms_of_prompt_are_the_same(api: Api) -> None:
    ids = ids_of(api, "Hello")
    answers = [await api.complete(prompt, **GREEDY) for prompt in ("Hello", ["Hello"], ids, [ids])]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == [5, 5, 5, 5]


async def test_several_prompts_are_answered_in_their_order(api: Api) -> None:
    prompts = ["one", "two two", "three three three"]
    alone = [(await api.complete(prompt, **GREEDY))["choices"][0]["text"] for prompt in prompts]
    for together in (prompts, [ids_of(api, prompt) for prompt in prompts]):
        answer = await api.complete(together, **GREEDY)
        assert [choice["text"] for choice in answer["choices"]] == alone
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        check_usage(answer["usage"], 27, 48)


async def test_n_gives_different_samples_each_prompts_together(api: Api) -> None:
    answer = await api.complete(["one", "two"], n=3, seed=5, ignore_eos=True, return_token_ids=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len({choice["text"] for choice in answer["choices"]}) == 6
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [ids_of(api, "one")] * 3 + [
        ids_of(api, "two")
    ] * 3
    assert answer["usage"]["prompt_tokens"] == 6
    assert answer["usage"]["completion_tokens"] == 6 * 16


async def test_n_greedy_gives_the_same_answer_n_times(api: Api) -> None:
    answer = await api.complete("one", n=3, **GREEDY)
    assert len({choice["text"] for choice in answer["choices"]}) == 1


async def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(api: Api) -> None:
    texts = [(await api.complete("a", seed=seed, ignore_eos=True))["choices"][0]["text"] for seed in (7, 7, 8, -7)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


async def test_without_a_seed_samples_differ(api: Api) -> None:
    texts = {(await api.complete("a", ignore_eos=True))["choices"][0]["text"] for _ in range(4)}
    assert len(texts) == 4


async def test_top_k_1_and_a_tiny_top_p_are_greedy(api: Api) -> None:
    [greedy] = (await api.complete("a", **GREEDY))["choices"]
    for only in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        [choice] = (await api.complete("a", ignore_eos=True, **only))["choices"]
        assert choice["text"] == greedy["text"]


async def test_end_of_sequence_ends_the_answer_unless_ignored(api: Api) -> None:
    bias = {"logit_bias": {str(EOS_ID): 100}, "return_token_ids": True, "temperature": 0}
    [choice] = (await api.complete("a", **bias))["choices"]
    assert (choice["token_ids"], choice["text"], choice["finish_reason"]) == ([EOS_ID], "", "stop")
    answer = await api.complete("a", ignore_eos=True, **bias)
    [choice] = answer["choices"]
    assert (choice["token_ids"], choice["text"], choice["finish_reason"]) == ([EOS_ID] * 16, "", "length")
    [choice] = (await api.complete("a", ignore_eos=True, skip_special_tokens=False, **bias))["choices"]
    assert choice["text"] == "<|eos|>" * 16


async def test_min_tokens_puts_off_the_end(api: Api) -> None:
    answer = await api.complete("a", min_tokens=6, logit_bias={str(EOS_ID): 100}, return_token_ids=True)
    [choice] = answer["choices"]
    assert len(choice["token_ids"]) == 7
    assert choice["token_ids"].index(EOS_ID) == 6
    assert choice["finish_reason"] == "stop"


async def test_a_stop_token_ends_the_answer_and_is_not_in_its_text(api: Api) -> None:
    [x] = ids_of(api, "x")
    answer = await api.complete("a", stop_token_ids=[x], logit_bias={str(x): 100}, return_token_ids=True)
    [choice] = answer["choices"]
    assert (choice["token_ids"], choice["text"], choice["finish_reason"]) == ([x], "", "stop")


def letters(api: Api, text: str) -> dict[str, Any]:
    """Parameters that make output of these characters' bytes only."""
    return {"logit_bias": {str(i): 100 for i in ids_of(api, text)}, "ignore_eos": True, "max_tokens": 40}


@pytest.mark.parametrize("seed", range(10))
async def test_stop_strings_cut_streamed_and_whole_text_alike(api: Api, seed: int) -> None:
    params = letters(api, "ab é") | {"seed": seed}
    [whole] = (await api.complete("x", **params))["choices"]
    for start, length in ((5, 2), (11, 3), (20, 1), (0, 4)):
        stop = whole["text"][start : start + length]
        expected = whole["text"][: whole["text"].find(stop)]
        [choice] = (await api.complete("x", stop=stop, **params))["choices"]
        assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
        chunks = await api.stream(COMPLETIONS, prompt="x", stop=["not there", stop], **params)
        assert text_of(chunks) == expected
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]


@pytest.mark.parametrize("bias", ["", "aé漢"], ids=["any bytes", "many-byte characters"])
@pytest.mark.parametrize("seed", range(10))
async def test_a_streams_pieces_join_to_the_whole_answer(api: Api, seed: int, bias: str) -> None:
    params: dict[str, Any] = {"seed": seed, "temperature": 1, "max_tokens": 60, "n": 2, "return_token_ids": True}
    if bias:
        params |= letters(api, bias)
    answer = await api.complete("Hello", **params)
    chunks = await api.stream(COMPLETIONS, prompt="Hello", **params)
    for choice in answer["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [i for part in parts for i in part["token_ids"]] == choice["token_ids"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        assert choice["text"] == api.tokenizer.decode(choice["token_ids"])
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_a_stream_has_no_usage_unless_asked(api: Api) -> None:
    for options in ({}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
        chunks = await api.stream(COMPLETIONS, prompt="a", **GREEDY, **options)
        assert all("usage" not in chunk for chunk in chunks)
        assert all(len(chunk["choices"]) == 1 for chunk in chunks)


async def test_include_usage_adds_a_last_chunk_without_choices(api: Api) -> None:
    *chunks, last = await api.stream(COMPLETIONS, prompt="abc", stream_options={"include_usage": True}, **GREEDY)
    assert last["choices"] == []
    check_usage(last["usage"], 3, 16)
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_continuous_usage_is_in_every_chunk_and_grows(api: Api) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await api.stream(COMPLETIONS, prompt="abc", stream_options=options, return_token_ids=True, **GREEDY)
    seen = 0
    for chunk in chunks:
        seen += sum(len(choice["token_ids"]) for choice in chunk["choices"])
        check_usage(chunk["usage"], 3, seen)
    assert seen == 16


async def test_return_token_ids_reports_prompt_and_output(api: Api) -> None:
    [choice] = (await api.complete("abc", return_token_ids=True, **GREEDY))["choices"]
    assert choice["prompt_token_ids"] == ids_of(api, "abc")
    first, *rest = await api.stream(COMPLETIONS, prompt="abc", return_token_ids=True, **GREEDY)
    assert first["choices"][0]["prompt_token_ids"] == ids_of(api, "abc")
    assert all("prompt_token_ids" not in chunk["choices"][0] for chunk in rest)


async def test_echo_puts_the_prompt_in_front_once(api: Api) -> None:
    [plain] = (await api.complete("né", **GREEDY))["choices"]
    for prompt in ("né", ids_of(api, "né")):
        [choice] = (await api.complete(prompt, echo=True, **GREEDY))["choices"]
        assert choice["text"] == "né" + plain["text"]
    chunks = await api.stream(COMPLETIONS, prompt="né", echo=True, n=2, **GREEDY)
    assert text_of(chunks, 0) == text_of(chunks, 1) == "né" + plain["text"]


async def test_echo_without_output_gives_the_prompt_back(api: Api) -> None:
    answer = await api.complete(["né", "x"], echo=True, max_tokens=0)
    assert [choice["text"] for choice in answer["choices"]] == ["né", "x"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    check_usage(answer["usage"], 4, 0)


def check_logprobs(logprobs: dict[str, Any], num_tokens: int, top: int, *, has_first: bool = False) -> None:
    """Lists of one length; alternatives sorted out by text, with the token itself among them; all at most 0."""
    assert logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(values) for values in logprobs.values()} == {num_tokens}
    rows = list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))
    if has_first:
        token, own, alternatives = rows.pop(0)
        assert (own, alternatives) == (None, None)
    for token, own, alternatives in rows:
        assert own <= 0
        assert token in alternatives
        assert len(alternatives) <= top + 1
        assert all(value <= 0 for value in alternatives.values())
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


@pytest.mark.parametrize("top", [0, 1, 5, 20])
async def test_logprobs_have_openais_shape(api: Api, top: int) -> None:
    [choice] = (await api.complete("abc", logprobs=top, **GREEDY))["choices"]
    check_logprobs(choice["logprobs"], 16, top)
    assert choice["logprobs"]["text_offset"][0] == 0


async def test_greedy_picks_the_likeliest_token(api: Api) -> None:
    [choice] = (await api.complete("abc", logprobs=2, **GREEDY, max_tokens=8))["choices"]
    lists = choice["logprobs"]
    for own, alternatives in zip(lists["token_logprobs"], lists["top_logprobs"], strict=True):
        assert own == max(alternatives.values())


async def test_alternatives_whose_bytes_are_no_character_stay_apart(api: Api) -> None:
    """As in OpenAI's own legacy logprobs; a dictionary by text must not let one token overwrite another."""
    half_characters = [ids_of(api, char)[0] for char in "éѱ漢👩"]
    bias = {str(token_id): 100 for token_id in half_characters}
    answer = await api.complete(half_characters * 4, echo=True, logprobs=20, max_tokens=8, logit_bias=bias)
    for alternatives in answer["choices"][0]["logprobs"]["top_logprobs"][1:]:
        assert len(alternatives) in (20, 21)


async def test_logprobs_of_chosen_tokens_are_the_models(api: Api, tiny_llama: Path) -> None:
    import torch

    answer = await api.complete("abc", logprobs=0, max_tokens=4, return_token_ids=True, seed=3, ignore_eos=True)
    [choice] = answer["choices"]
    ids = ids_of(api, "abc") + choice["token_ids"]
    with torch.no_grad():
        expected = tiny.reference(tiny_llama)(torch.tensor([ids])).logits[0].log_softmax(-1)
    for i, own in enumerate(choice["logprobs"]["token_logprobs"]):
        assert math.isclose(own, float(expected[2 + i, ids[3 + i]]), abs_tol=1e-3)


async def test_text_offsets_point_at_the_tokens_text(api: Api) -> None:
    params = letters(api, "abc") | {"seed": 2, "logprobs": 0}
    [choice] = (await api.complete("é!", echo=True, **params))["choices"]
    lists = choice["logprobs"]
    check_logprobs(lists, 3 + 40, 0, has_first=True)
    assert lists["text_offset"][:3] == [0, 0, 1]
    for token, offset in list(zip(lists["tokens"], lists["text_offset"], strict=True))[2:]:
        assert choice["text"][offset : offset + len(token)] == token


async def test_streamed_logprobs_join_to_the_whole_answers(api: Api) -> None:
    params = letters(api, "aé漢") | {"seed": 4, "logprobs": 3, "echo": True}
    [whole] = (await api.complete("né", **params))["choices"]
    chunks = await api.stream(COMPLETIONS, prompt="né", **params)
    joined: dict[str, list[Any]] = {name: [] for name in whole["logprobs"]}
    for chunk in chunks:
        for name, values in chunk["choices"][0]["logprobs"].items():
            joined[name] += values
    assert joined == whole["logprobs"]


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_lm_eval_scores_a_prompt_by_echo(api: Api, tiny_llama: Path, max_tokens: int) -> None:
    """lm-evaluation-harness: prompt as token ids, echo, logprobs, max_tokens 0 or 1."""
    import torch

    prompts = [ids_of(api, "The quick brown fox"), ids_of(api, "né")]
    answer = await api.complete(prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, ignore_eos=True)
    reference = tiny.reference(tiny_llama)
    for ids, choice in zip(prompts, answer["choices"], strict=True):
        check_logprobs(choice["logprobs"], len(ids) + max_tokens, 1, has_first=True)
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
        for i in range(1, len(ids)):
            own = choice["logprobs"]["token_logprobs"][i]
            assert math.isclose(own, float(expected[i - 1, ids[i]]), abs_tol=1e-3)
            best = max(choice["logprobs"]["top_logprobs"][i].values())
            assert math.isclose(best, float(expected[i - 1].max()), abs_tol=1e-3)


async def test_a_prompt_of_one_token_has_no_prompt_logprobs(api: Api) -> None:
    [choice] = (await api.complete([EOS_ID], echo=True, logprobs=1, max_tokens=0))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["<|eos|>"],
        "token_logprobs": [None],
        "top_logprobs": [None],
        "text_offset": [0],
    }


async def test_logprobs_are_the_models_own_whatever_the_sampling(api: Api) -> None:
    params = {"logprobs": 1, "max_tokens": 1, "ignore_eos": True}
    [greedy] = (await api.complete("abc", temperature=0, **params))["choices"]
    [biased] = (await api.complete("abc", temperature=0.3, top_k=1, presence_penalty=1, **params))["choices"]
    assert biased["logprobs"]["top_logprobs"] == [pytest.approx(greedy["logprobs"]["top_logprobs"][0], abs=1e-4)]


async def test_penalties_work_in_every_mode(api: Api) -> None:
    penalties = {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.3}
    plain = await api.complete("aaaa", **GREEDY)
    for mode in ({"temperature": 0}, {"temperature": 1, "seed": 1, "top_p": 0.5}, {"n": 2}, {"logprobs": 3}):
        await api.complete("aaaa", ignore_eos=True, **penalties, **mode)
    changed = await api.complete("aaaa", **GREEDY, **penalties, max_tokens=40)
    assert not changed["choices"][0]["text"].startswith(plain["choices"][0]["text"])


async def test_null_and_neutral_values_are_taken(api: Api) -> None:
    neutral: dict[str, Any] = {
        "best_of": 1,
        "suffix": "",
        "tools": [],
        "response_format": {"type": "text"},
        "logit_bias": {},
        "stop": [],
        "user": "someone",
        "top_k": -1,
        "store": False,
    }
    names = "n temperature top_p max_tokens logprobs echo stream stream_options stop seed suffix best_of user model"
    nulls = dict.fromkeys([*names.split(), "prompt_logprobs", "presence_penalty", "logit_bias", "no_such_parameter"])
    expected = (await api.complete("a", **GREEDY))["choices"]
    assert (await api.complete("a", **GREEDY | neutral))["choices"] == expected
    assert (await api.complete("a", **nulls | GREEDY))["choices"] == expected


async def test_a_full_context_is_served(api: Api) -> None:
    answer = await api.complete([65] * 500, max_tokens=12, **GREEDY)
    assert answer["usage"]["total_tokens"] == 512

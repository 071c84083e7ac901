"""POST /v1/completions: what goes in, what comes out, streamed and whole."""

import math

import pytest
import torch

from tests.server.conftest import COMPLETIONS, EOS_ID, check_usage, text_of
from tests.support import tiny

GREEDY = {"temperature": 0, "ignore_eos": True}


async def test_an_answer_has_openais_shape(api):
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


async def test_greedy_tokens_are_the_reference_models(api, tiny_llama, ids_of, reference_tokenizer):
    answer = await api.complete("Hello", max_tokens=20, return_token_ids=True, **GREEDY)
    expected = tiny.greedy(tiny.reference(tiny_llama), ids_of("Hello"), 20)
    assert answer["choices"][0]["token_ids"] == expected
    assert answer["choices"][0]["text"] == reference_tokenizer.decode(expected)


async def test_the_default_is_16_tokens(api):
    assert (await api.complete("a", ignore_eos=True, seed=1))["usage"]["completion_tokens"] == 16


async def test_all_four_forms_of_prompt_are_the_same(api, ids_of):
    ids = ids_of("Hello")
    answers = [await api.complete(prompt, **GREEDY) for prompt in ("Hello", ["Hello"], ids, [ids])]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == [5, 5, 5, 5]


async def test_several_prompts_are_answered_in_their_order(api, ids_of):
    prompts = ["one", "two two", "three three three"]
    alone = [(await api.complete(prompt, **GREEDY))["choices"][0]["text"] for prompt in prompts]
    for together in (prompts, [ids_of(prompt) for prompt in prompts]):
        answer = await api.complete(together, **GREEDY)
        assert [choice["text"] for choice in answer["choices"]] == alone
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        check_usage(answer["usage"], 27, 48)


async def test_n_gives_different_samples_each_prompts_together(api, ids_of):
    answer = await api.complete(["one", "two"], n=3, seed=5, ignore_eos=True, return_token_ids=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len({choice["text"] for choice in answer["choices"]}) == 6
    prompts = [choice["prompt_token_ids"] for choice in answer["choices"]]
    assert prompts == [ids_of("one")] * 3 + [ids_of("two")] * 3
    assert answer["usage"]["prompt_tokens"] == 6
    assert answer["usage"]["completion_tokens"] == 6 * 16


async def test_n_greedy_gives_the_same_answer_n_times(api):
    answer = await api.complete("one", n=3, **GREEDY)
    assert len({choice["text"] for choice in answer["choices"]}) == 1


async def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(api):
    texts = [(await api.complete("a", seed=seed, ignore_eos=True))["choices"][0]["text"] for seed in (7, 7, 8, -7)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


async def test_without_a_seed_samples_differ(api):
    texts = {(await api.complete("a", ignore_eos=True))["choices"][0]["text"] for _ in range(4)}
    assert len(texts) == 4


async def test_top_k_1_and_a_tiny_top_p_are_greedy(api):
    greedy = await api.choice("a", **GREEDY)
    for only in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        choice = await api.choice("a", ignore_eos=True, **only)
        assert choice["text"] == greedy["text"]


async def test_end_of_sequence_ends_the_answer_unless_ignored(api):
    bias = {"logit_bias": {str(EOS_ID): 100}, "return_token_ids": True, "temperature": 0}
    choice = await api.choice("a", **bias)
    assert (choice["token_ids"], choice["text"], choice["finish_reason"]) == ([EOS_ID], "", "stop")
    choice = await api.choice("a", ignore_eos=True, **bias)
    assert (choice["token_ids"], choice["text"], choice["finish_reason"]) == ([EOS_ID] * 16, "", "length")
    choice = await api.choice("a", ignore_eos=True, skip_special_tokens=False, **bias)
    assert choice["text"] == "<|eos|>" * 16


async def test_min_tokens_puts_off_the_end(api):
    choice = await api.choice("a", min_tokens=6, logit_bias={str(EOS_ID): 100}, return_token_ids=True)
    assert len(choice["token_ids"]) == 7
    assert choice["token_ids"].index(EOS_ID) == 6
    assert choice["finish_reason"] == "stop"


async def test_a_stop_token_ends_the_answer_and_is_not_in_its_text(api, ids_of):
    [x] = ids_of("x")
    choice = await api.choice("a", stop_token_ids=[x], logit_bias={str(x): 100}, return_token_ids=True)
    assert (choice["token_ids"], choice["text"], choice["finish_reason"]) == ([x], "", "stop")


async def test_return_token_ids_reports_prompt_and_output(api, ids_of):
    choice = await api.choice("abc", return_token_ids=True, **GREEDY)
    assert choice["prompt_token_ids"] == ids_of("abc")
    first, *rest = await api.stream(COMPLETIONS, prompt="abc", return_token_ids=True, **GREEDY)
    assert first["choices"][0]["prompt_token_ids"] == ids_of("abc")
    assert all("prompt_token_ids" not in chunk["choices"][0] for chunk in rest)


async def test_echo_puts_the_prompt_in_front_once(api, ids_of):
    plain = await api.choice("né", **GREEDY)
    for prompt in ("né", ids_of("né")):
        choice = await api.choice(prompt, echo=True, **GREEDY)
        assert choice["text"] == "né" + plain["text"]
    chunks = await api.stream(COMPLETIONS, prompt="né", echo=True, n=2, **GREEDY)
    assert text_of(*chunks, choice=0) == text_of(*chunks, choice=1) == "né" + plain["text"]


async def test_echo_without_output_gives_the_prompt_back(api):
    answer = await api.complete(["né", "x"], echo=True, max_tokens=0)
    assert [choice["text"] for choice in answer["choices"]] == ["né", "x"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    check_usage(answer["usage"], 4, 0)


def check_logprobs(logprobs, num_tokens, top, *, has_first=False):
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
async def test_logprobs_have_openais_shape(api, top):
    choice = await api.choice("abc", logprobs=top, **GREEDY)
    check_logprobs(choice["logprobs"], 16, top)
    assert choice["logprobs"]["text_offset"][0] == 0


async def test_greedy_picks_the_likeliest_token(api):
    choice = await api.choice("abc", logprobs=2, **GREEDY, max_tokens=8)
    lists = choice["logprobs"]
    for own, alternatives in zip(lists["token_logprobs"], lists["top_logprobs"], strict=True):
        assert own == max(alternatives.values())


async def test_alternatives_whose_bytes_are_no_character_stay_apart(api, ids_of):
    """As in OpenAI's own legacy logprobs; a dictionary by text must not let one token overwrite another."""
    half_characters = [ids_of(char)[0] for char in "éѱ漢👩"]
    bias = {str(token_id): 100 for token_id in half_characters}
    answer = await api.complete(half_characters * 4, echo=True, logprobs=20, max_tokens=8, logit_bias=bias)
    for alternatives in answer["choices"][0]["logprobs"]["top_logprobs"][1:]:
        assert len(alternatives) in (20, 21)


async def test_logprobs_of_chosen_tokens_are_the_models(api, tiny_llama, ids_of):
    choice = await api.choice("abc", logprobs=0, max_tokens=4, return_token_ids=True, seed=3, ignore_eos=True)
    ids = ids_of("abc") + choice["token_ids"]
    with torch.no_grad():
        expected = tiny.reference(tiny_llama)(torch.tensor([ids])).logits[0].log_softmax(-1)
    for i, own in enumerate(choice["logprobs"]["token_logprobs"]):
        assert math.isclose(own, float(expected[2 + i, ids[3 + i]]), abs_tol=1e-3)


async def test_text_offsets_point_at_the_tokens_text(api, letters):
    params = letters("abc") | {"seed": 2, "logprobs": 0}
    choice = await api.choice("é!", echo=True, **params)
    lists = choice["logprobs"]
    check_logprobs(lists, 3 + 40, 0, has_first=True)
    assert lists["text_offset"][:3] == [0, 0, 1]
    for token, offset in list(zip(lists["tokens"], lists["text_offset"], strict=True))[2:]:
        assert choice["text"][offset : offset + len(token)] == token


async def test_streamed_logprobs_join_to_the_whole_answers(api, letters):
    params = letters("aé漢") | {"seed": 4, "logprobs": 3, "echo": True}
    whole = await api.choice("né", **params)
    chunks = await api.stream(COMPLETIONS, prompt="né", **params)
    joined = {name: [] for name in whole["logprobs"]}
    for chunk in chunks:
        for name, values in chunk["choices"][0]["logprobs"].items():
            joined[name] += values
    assert joined == whole["logprobs"]


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_lm_eval_scores_a_prompt_by_echo(api, tiny_llama, max_tokens, ids_of):
    """lm-evaluation-harness: prompt as token ids, echo, logprobs, max_tokens 0 or 1."""
    prompts = [ids_of("The quick brown fox"), ids_of("né")]
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


async def test_a_prompt_of_one_token_has_no_prompt_logprobs(api):
    choice = await api.choice([EOS_ID], echo=True, logprobs=1, max_tokens=0)
    assert choice["logprobs"] == {
        "tokens": ["<|eos|>"],
        "token_logprobs": [None],
        "top_logprobs": [None],
        "text_offset": [0],
    }


async def test_logprobs_are_the_models_own_whatever_the_sampling(api):
    params = {"logprobs": 1, "max_tokens": 1, "ignore_eos": True}
    greedy = await api.choice("abc", temperature=0, **params)
    biased = await api.choice("abc", temperature=0.3, top_k=1, presence_penalty=1, **params)
    assert biased["logprobs"]["top_logprobs"] == [pytest.approx(greedy["logprobs"]["top_logprobs"][0], abs=1e-4)]


async def test_penalties_work_in_every_mode(api):
    penalties = {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.3}
    plain = await api.complete("aaaa", **GREEDY)
    for mode in ({"temperature": 0}, {"temperature": 1, "seed": 1, "top_p": 0.5}, {"n": 2}, {"logprobs": 3}):
        await api.complete("aaaa", ignore_eos=True, **penalties, **mode)
    changed = await api.complete("aaaa", **GREEDY, **penalties, max_tokens=40)
    assert not changed["choices"][0]["text"].startswith(plain["choices"][0]["text"])


async def test_a_full_context_is_served(api):
    answer = await api.complete([65] * 500, max_tokens=12, **GREEDY)
    assert answer["usage"]["total_tokens"] == 512

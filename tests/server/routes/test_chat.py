"""POST /v1/chat/completions: what goes in, what comes out, streamed and whole."""

import dataclasses

import pytest

from engine.loading.resolve import ModelSource
from server.chat.chat_template import ChatTemplate
from server.config import ServerConfig
from server.text.tokenizer import Tokenizer
from tests.server.conftest import CHAT, EOS_ID, check_error, check_usage, text_of

GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 12}
RENDERED = "<|bos|>[user]hi[assistant]"


async def test_an_answer_has_openais_shape(api):
    answer = await api.chat("hi", model="tiny", **GREEDY)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    check_usage(answer["usage"], 20, 12)
    [choice] = answer["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert (choice["message"]["role"], choice["message"]["refusal"]) == ("assistant", None)
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")


async def test_it_is_the_completion_of_the_rendered_template(api, ids_of):
    [expected] = (await api.complete(RENDERED, return_token_ids=True, **GREEDY))["choices"]
    answer = await api.chat("hi", return_token_ids=True, **GREEDY)
    assert answer["choices"][0]["message"]["content"] == expected["text"]
    assert answer["choices"][0]["token_ids"] == expected["token_ids"]
    assert answer["prompt_token_ids"] == ids_of(RENDERED)  # with the template's own BOS, not another one


async def test_content_may_come_in_text_parts(api):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert (await api.chat(parts, **GREEDY))["choices"] == (await api.chat("hi", **GREEDY))["choices"]


async def test_roles_and_their_order_reach_the_template(api, reference_tokenizer):
    messages = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "a", "name": "someone"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "b"},
    ]
    ids = (await api.ask(CHAT, messages=messages, return_token_ids=True, **GREEDY))["prompt_token_ids"]
    text = reference_tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<|bos|>[system]be[user]a[assistant][user]b[assistant]"


async def test_the_generation_prompt_can_be_left_out(api, reference_tokenizer):
    answer = await api.chat("hi", add_generation_prompt=False, return_token_ids=True, **GREEDY)
    assert reference_tokenizer.decode(answer["prompt_token_ids"], skip_special_tokens=False) == "<|bos|>[user]hi"


async def test_a_role_that_the_template_does_not_know_is_refused_in_its_words(api, monkeypatch):
    refusing = ChatTemplate("{{ raise_exception('unknown role ' + messages[0].role) }}", {})
    monkeypatch.setattr(api.tokenizer, "chat_template", refusing)
    error = check_error(await api.post(CHAT), 400, type="invalid_request_error", param="messages")
    assert "unknown role user" in error["message"]


async def test_a_role_that_nobody_knows_is_refused_by_its_place(api):
    messages = [{"role": "user", "content": "hi"}, {"role": "wizard", "content": "hi"}]
    error = check_error(await api.post(CHAT, messages=messages), 400, type="invalid_request_error", param="messages")
    assert error["message"] == (
        "Invalid 'messages[1].role': Input should be 'system', 'developer', 'user', 'assistant', 'tool' or 'function'"
    )


async def test_the_role_is_in_each_choices_first_chunk_only(api):
    chunks = await api.stream(CHAT, n=2, seed=1, ignore_eos=True, max_tokens=10)
    for index in (0, 1):
        first, *rest = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert first["delta"]["role"] == "assistant"
        assert first["delta"]["content"]  # and not before there is text: benchmarks start their clocks here
        assert all("role" not in choice["delta"] for choice in rest)
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


async def test_the_prompts_token_ids_are_in_the_first_chunk_only(api):
    whole = await api.ask(CHAT, return_token_ids=True, n=2, **GREEDY)
    first, *rest = await api.stream(CHAT, return_token_ids=True, n=2, **GREEDY)
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert all("prompt_token_ids" not in chunk for chunk in rest)


async def test_logprobs_have_openais_shape(api, reference_tokenizer):
    answer = await api.chat("hi", logprobs=True, top_logprobs=3, return_token_ids=True, **GREEDY)
    [choice] = answer["choices"]
    assert choice["logprobs"].keys() == {"content", "refusal"}
    assert choice["logprobs"]["refusal"] is None
    assert len(choice["logprobs"]["content"]) == 12
    in_bytes = b"".join(bytes(report["bytes"]) for report in choice["logprobs"]["content"])
    assert in_bytes.decode(errors="replace") == reference_tokenizer.decode(choice["token_ids"])
    for report in choice["logprobs"]["content"]:
        assert report.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert report["token"] == bytes(report["bytes"]).decode(errors="replace")
        assert len(report["top_logprobs"]) == 3
        assert all(top.keys() == {"token", "logprob", "bytes"} for top in report["top_logprobs"])
        values = [top["logprob"] for top in report["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert report["logprob"] == values[0] <= 0  # greedy
        assert report["top_logprobs"][0]["bytes"] == report["bytes"]


async def test_logprobs_without_alternatives_and_streamed(api):
    [whole] = (await api.chat("hi", logprobs=True, **GREEDY))["choices"]
    assert all(report["top_logprobs"] == [] for report in whole["logprobs"]["content"])
    chunks = await api.stream(CHAT, logprobs=True, **GREEDY)
    reports = [report for chunk in chunks for report in chunk["choices"][0]["logprobs"]["content"]]
    assert reports == whole["logprobs"]["content"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_output_limit_has_two_names(api, name):
    answer = await api.chat("hi", temperature=0, ignore_eos=True, **{name: 3})
    assert answer["usage"]["completion_tokens"] == 3


async def test_max_completion_tokens_wins_over_its_older_name(api):
    answer = await api.chat("hi", temperature=0, ignore_eos=True, max_tokens=5, max_completion_tokens=3)
    assert answer["usage"]["completion_tokens"] == 3


async def test_without_a_limit_the_context_is_filled(api):
    answer = await api.chat("a" * 480, temperature=0, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_conversation_longer_than_the_context_is_refused(api):
    response = await api.post(CHAT, messages=[{"role": "user", "content": "a" * 600}])
    error = check_error(response, 400, code="context_length_exceeded", type="invalid_request_error")
    assert "512" in error["message"]
    assert error["param"] == "messages"


async def test_a_limit_beyond_the_context_is_refused_by_its_own_name(api):
    for name in ("max_tokens", "max_completion_tokens"):
        response = await api.post(CHAT, **{name: 600})
        check_error(response, 400, code="context_length_exceeded", param=name)


async def test_a_model_without_a_chat_template_refuses_chats_and_takes_completions(serve, tiny_llama):
    tokenizer = Tokenizer.load(ModelSource(tiny_llama, "tiny"))
    tokenizer.chat_template = None
    api = await serve(tokenizer)
    check_error(await api.post(CHAT), 400, param="messages")
    assert (await api.complete("a", max_tokens=1))["choices"]


async def test_template_variables_reach_the_template(api, monkeypatch, reference_tokenizer):
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate("{{ mood }}{{ messages[0].content }}", {}))
    answer = await api.chat("hi", chat_template_kwargs={"mood": "calm "}, return_token_ids=True, **GREEDY)
    assert reference_tokenizer.decode(answer["prompt_token_ids"]) == "calm hi"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt_opens", [True, False])
async def test_reasoning_comes_apart_from_the_answer(api, monkeypatch, prompt_opens, stream, ids_of, say):
    """R1's template ends the prompt with <think>; where a template does not, the output itself opens with it."""
    opening = "<think>\n"
    template = "{{ messages[0].content }}" + (opening if prompt_opens else "")
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate(template, {}))
    say([*ids_of(("" if prompt_opens else opening) + "1 < 2, so é.\n</think>\n\nYes.\n"), EOS_ID])
    if stream:
        chunks = await api.stream(CHAT, temperature=0)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert all("<" not in delta.get("content", "") for delta in deltas)
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        answer = text_of(*chunks)
    else:
        message = (await api.chat("hi", temperature=0))["choices"][0]["message"]
        reasoning, answer = message["reasoning_content"], message["content"]
    assert (reasoning, answer) == ("1 < 2, so é.", "Yes.\n")


async def test_reasoning_is_left_in_where_it_is_switched_off(api, monkeypatch, ids_of, say):
    api.app.state.server = dataclasses.replace(api.app.state.server, config=ServerConfig(reasoning="none"))
    say([*ids_of("<think>a</think>b"), EOS_ID])
    message = (await api.chat("hi", temperature=0))["choices"][0]["message"]
    assert message["content"] == "<think>a</think>b"
    assert "reasoning_content" not in message

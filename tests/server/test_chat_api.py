"""POST /v1/chat/completions: what goes in, what comes out, streamed and whole."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch

from engine.loading.resolve import ModelSource
from server.app import create_app
from server.chat_template import ChatTemplate
from server.config import ServerConfig
from server.engine_client import InProcessEngine
from server.tokenizer import Tokenizer
from tests.server.conftest import CHAT, COMPLETIONS, check_error, check_usage, running, text_of

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine
    from tests.server.conftest import Api

EOS_ID = 257
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 12}
HI = [{"role": "user", "content": "hi"}]
RENDERED = "<|bos|>[user]hi[assistant]"


async def test_an_answer_has_openais_shape(api: Api) -> None:
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


async def test_it_is_the_completion_of_the_rendered_template(api: Api) -> None:
    [expected] = (await api.complete(RENDERED, return_token_ids=True, **GREEDY))["choices"]
    answer = await api.chat("hi", return_token_ids=True, **GREEDY)
    assert answer["choices"][0]["message"]["content"] == expected["text"]
    assert answer["choices"][0]["token_ids"] == expected["token_ids"]
    assert answer["prompt_token_ids"] == expected["prompt_token_ids"]
    assert answer["prompt_token_ids"].count(256) == 1  # the template's own BOS, not another one


async def test_content_may_come_in_text_parts(api: Api) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert (await api.chat(parts, **GREEDY))["choices"] == (await api.chat("hi", **GREEDY))["choices"]


async def test_roles_and_their_order_reach_the_template(api: Api) -> None:
    messages = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "a", "name": "someone"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "b"},
    ]
    response = await api.post(CHAT, messages=messages, return_token_ids=True, **GREEDY)
    ids = response.json()["prompt_token_ids"]
    text = api.tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<|bos|>[system]be[user]a[assistant][user]b[assistant]"


async def test_the_generation_prompt_can_be_left_out(api: Api) -> None:
    answer = await api.chat("hi", add_generation_prompt=False, return_token_ids=True, **GREEDY)
    assert api.tokenizer.decode(answer["prompt_token_ids"], skip_special_tokens=False) == "<|bos|>[user]hi"


async def test_an_unknown_role_is_refused_in_the_templates_words(api: Api) -> None:
    response = await api.post(CHAT, messages=[{"role": "wizard", "content": "hi"}])
    error = check_error(response, 400, type="invalid_request_error", param="messages")
    assert "unknown role wizard" in error["message"]


async def test_the_role_is_in_each_choices_first_chunk_only(api: Api) -> None:
    chunks = await api.stream(CHAT, messages=HI, n=2, seed=1, ignore_eos=True, max_tokens=10)
    for index in (0, 1):
        first, *rest = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert first["delta"]["role"] == "assistant"
        assert first["delta"]["content"]  # and not before there is text: benchmarks start their clocks here
        assert all("role" not in choice["delta"] for choice in rest)
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("seed", range(10))
async def test_a_streams_pieces_join_to_the_whole_answer(api: Api, seed: int) -> None:
    params: dict[str, Any] = {"seed": seed, "max_tokens": 60, "n": 2, "return_token_ids": True}
    whole = await api.chat("hi", **params)
    chunks = await api.stream(CHAT, messages=HI, **params)
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["delta"].get("content", "") for part in parts) == choice["message"]["content"]
        assert [i for part in parts for i in part["token_ids"]] == choice["token_ids"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [whole["prompt_token_ids"]] + [None] * (
        len(chunks) - 1
    )


@pytest.mark.parametrize("seed", range(5))
async def test_stop_strings_cut_streamed_and_whole_text_alike(api: Api, seed: int) -> None:
    bias = {str(i): 100 for i in api.tokenizer.encode("abé ")}
    params: dict[str, Any] = {"seed": seed, "max_tokens": 40, "logit_bias": bias, "ignore_eos": True}
    text = (await api.chat("hi", **params))["choices"][0]["message"]["content"]
    stop = text[9:12]
    [choice] = (await api.chat("hi", stop=[stop], **params))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text[: text.find(stop)], "stop")
    assert text_of(await api.stream(CHAT, messages=HI, stop=stop, **params)) == text[: text.find(stop)]


async def test_usage_is_streamed_when_asked(api: Api) -> None:
    plain = await api.stream(CHAT, messages=HI, **GREEDY)
    assert all("usage" not in chunk for chunk in plain)
    *chunks, last = await api.stream(CHAT, messages=HI, stream_options={"include_usage": True}, **GREEDY)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    check_usage(last["usage"], 20, 12)
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await api.stream(CHAT, messages=HI, stream_options=options, **GREEDY)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == 12


async def test_logprobs_have_openais_shape(api: Api) -> None:
    answer = await api.chat("hi", logprobs=True, top_logprobs=3, return_token_ids=True, **GREEDY)
    [choice] = answer["choices"]
    assert choice["logprobs"].keys() == {"content", "refusal"}
    assert choice["logprobs"]["refusal"] is None
    assert len(choice["logprobs"]["content"]) == 12
    for token_id, report in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True):
        assert report.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(report["bytes"]) == api.tokenizer.token_bytes(token_id)
        assert report["token"] == bytes(report["bytes"]).decode(errors="replace")
        assert len(report["top_logprobs"]) == 3
        assert all(top.keys() == {"token", "logprob", "bytes"} for top in report["top_logprobs"])
        values = [top["logprob"] for top in report["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert report["logprob"] == values[0] <= 0  # greedy
        assert report["top_logprobs"][0]["bytes"] == report["bytes"]


async def test_logprobs_without_alternatives_and_streamed(api: Api) -> None:
    [whole] = (await api.chat("hi", logprobs=True, **GREEDY))["choices"]
    assert all(report["top_logprobs"] == [] for report in whole["logprobs"]["content"])
    chunks = await api.stream(CHAT, messages=HI, logprobs=True, **GREEDY)
    reports = [report for chunk in chunks for report in chunk["choices"][0]["logprobs"]["content"]]
    assert reports == whole["logprobs"]["content"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_output_limit_has_two_names(api: Api, name: str) -> None:
    answer = await api.chat("hi", temperature=0, ignore_eos=True, **{name: 3})
    assert answer["usage"]["completion_tokens"] == 3


async def test_max_completion_tokens_wins_over_its_older_name(api: Api) -> None:
    answer = await api.chat("hi", temperature=0, ignore_eos=True, max_tokens=5, max_completion_tokens=3)
    assert answer["usage"]["completion_tokens"] == 3


async def test_without_a_limit_the_context_is_filled(api: Api) -> None:
    answer = await api.chat("a" * 480, temperature=0, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_conversation_longer_than_the_context_is_refused(api: Api) -> None:
    response = await api.post(CHAT, messages=[{"role": "user", "content": "a" * 600}])
    error = check_error(response, 400, code="context_length_exceeded", type="invalid_request_error")
    assert "512" in error["message"]
    assert error["param"] == "messages"


async def test_a_limit_beyond_the_context_is_refused_by_its_own_name(api: Api) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        response = await api.post(CHAT, messages=HI, **{name: 600})
        check_error(response, 400, code="context_length_exceeded", param=name)


async def test_null_and_neutral_values_are_taken(api: Api) -> None:
    expected = (await api.chat("hi", **GREEDY))["choices"]
    names = "n stop stream logprobs top_logprobs max_completion_tokens tools tool_choice response_format functions user"
    neutral = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]}
    neutral |= {"metadata": {}, "store": False, "service_tier": "auto"}
    assert (await api.chat("hi", **dict.fromkeys(names.split()), **GREEDY))["choices"] == expected
    assert (await api.chat("hi", **neutral, **GREEDY))["choices"] == expected


async def test_a_model_without_a_chat_template_refuses_chats_and_takes_completions(
    tiny_engine: Engine, tiny_llama: Path
) -> None:
    tokenizer = Tokenizer.load(ModelSource(tiny_llama, "tiny"))
    tokenizer.chat_template = None
    client = InProcessEngine(tiny_engine)
    transport = httpx.ASGITransport(create_app(client, tokenizer, "tiny", tiny_llama))
    async with running(client), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        check_error(await http.post(CHAT, json={"messages": HI}), 400, param="messages")
        assert (await http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1})).status_code == 200


async def test_template_variables_reach_the_template(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate("{{ mood }}{{ messages[0].content }}", {}))
    answer = await api.chat("hi", chat_template_kwargs={"mood": "calm "}, return_token_ids=True, **GREEDY)
    assert api.tokenizer.decode(answer["prompt_token_ids"]) == "calm hi"


def say(api: Api, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the model say this text, whatever it reads, and then end."""
    script = iter([*api.tokenizer.encode(text), EOS_ID])

    def head(hidden: torch.Tensor) -> torch.Tensor:
        (row,) = torch.full((len(hidden), 258), -10.0)
        row[next(script)] = 10.0
        return row[None]

    monkeypatch.setattr(api.engine.executor.runner.model, "_head", head)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt_opens", [True, False])
async def test_reasoning_comes_apart_from_the_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch, *, prompt_opens: bool, stream: bool
) -> None:
    """R1's template ends the prompt with <think>; where a template does not, the output itself opens with it."""
    opening = "<think>\n"
    template = "{{ messages[0].content }}" + (opening if prompt_opens else "")
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate(template, {}))
    say(api, ("" if prompt_opens else opening) + "1 < 2, so é.\n</think>\n\nYes.\n", monkeypatch)
    if stream:
        chunks = await api.stream(CHAT, messages=HI, temperature=0)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert all("<" not in delta.get("content", "") for delta in deltas)
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        answer = text_of(chunks)
    else:
        message = (await api.chat("hi", temperature=0))["choices"][0]["message"]
        reasoning, answer = message["reasoning_content"], message["content"]
    assert (reasoning, answer) == ("1 < 2, so é.", "Yes.\n")


async def test_reasoning_is_left_in_where_it_is_switched_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.app.state.server = dataclasses.replace(api.app.state.server, config=ServerConfig(reasoning="none"))
    say(api, "<think>a</think>b", monkeypatch)
    message = (await api.chat("hi", temperature=0))["choices"][0]["message"]
    assert message["content"] == "<think>a</think>b"
    assert "reasoning_content" not in message

"""Prompts of text and code, over every API that takes them, on a DynamicMoE model and on one that knows text alone."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tokenizers import Tokenizer as HFTokenizer

from engine.build import load_engine
from engine.config import EngineConfig
from server.text.fill_in_middle import FillInMiddle
from server.text.tokenizer import Tokenizer
from tests.server.conftest import CHAT, COMPLETIONS, check_error
from tests.support.dynamic_moe_reference import DynamicMoEReference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from engine.engine import Engine
    from tests.server.conftest import Api

FENCED = "Why? ```py\nx = 1\n``` So."
DRAWN = "........ccccccccc......."  # code is c
HEAD, TAIL = "." * len("^[user]"), "." * len("[assistant]")  # BOS is one token


@pytest.fixture(scope="module")
def moe_folder(make_dynamic_moe: Callable[..., Path]) -> Path:
    return make_dynamic_moe("mixed")


@pytest.fixture(scope="module")
def moe_engine(moe_folder: Path) -> Engine:
    return load_engine(EngineConfig(model=str(moe_folder), dtype="float32", device="cpu", threads=1, num_kv_blocks=512))


@pytest_asyncio.fixture
async def moe(serve: Callable[..., Any], moe_engine: Engine) -> AsyncIterator[Api]:
    """An API whose model knows code."""
    api: Api = await serve(engine=moe_engine)
    yield api
    await api.until_idle()


@pytest.fixture
def sent(moe_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine was asked to read: of each prompt a character a token, c for code."""
    drawn: list[str] = []
    add = moe_engine.add

    def note(request: Any) -> None:
        modalities = request.modalities or bytes(len(request.prompt_token_ids))
        assert len(modalities) == len(request.prompt_token_ids)
        drawn.append("".join(".c"[modality] for modality in modalities))
        add(request)

    monkeypatch.setattr(moe_engine, "add", note)
    return drawn


def part(kind: str, words: str) -> dict[str, str]:
    return {"type": kind, "text": words}


def logprobs_of(reports: list[Any], ids: list[int]) -> list[float]:
    """The logprobs of a prompt's tokens but the first, as an answer reports them."""
    return [report[str(i)]["logprob"] for report, i in zip(reports[1:], ids[1:], strict=True)]


async def test_fences_say_what_is_code(moe, sent):
    await moe.complete(FENCED)
    await moe.complete([FENCED, "no code", "``` open"], max_tokens=1)
    await moe.chat(FENCED, max_tokens=1)
    assert sent == [DRAWN, DRAWN, ".......", "...ccccc", HEAD + DRAWN + TAIL]


async def test_modality_says_it_of_a_whole_prompt(moe, sent):
    for modality, mark in (("code", "c"), ("text", ".")):
        await moe.complete([FENCED, "a"], modality=modality, max_tokens=1)
        await moe.complete([[1, 2, 3]], modality=modality, max_tokens=1)
        await moe.chat(FENCED, modality=modality, max_tokens=1)
        assert [*map(set, sent)] == [{mark}] * 4, modality
        sent.clear()
    await moe.complete([1, 2, 3], max_tokens=1)
    assert sent == ["..."]


async def test_parts_of_type_code_are_code_whatever_else_is_said(moe, sent):
    content = [part("text", "a```b```"), part("code", "x```"), {"type": "code", "code": "y"}, part("text", "``` z")]
    for modality, expected in ((None, "....c...ccccc...cc"), ("text", "........ccccc....."), ("code", "c" * 18)):
        await moe.chat(content, max_tokens=1, modality=modality)
        user = sent.pop()[len(HEAD) : -len(TAIL)]
        assert user == expected, modality


async def test_all_choices_and_streams_have_the_modalities(moe, sent):
    for fields in ({"n": 3}, {"stream": True}, {"echo": True, "logprobs": 1}):
        response = await moe.post(COMPLETIONS, prompt=FENCED, max_tokens=2, **fields)
        assert response.status_code == 200, response.text
    assert sent == [DRAWN] * 3
    await moe.stream(CHAT, messages=[{"role": "user", "content": FENCED}], max_tokens=1)
    assert DRAWN in sent[-1]


async def test_cutting_a_prompt_cuts_its_modalities_alike(moe, sent):
    for keep in (3, 10, len(FENCED), 100):
        await moe.complete(FENCED, truncate_prompt_tokens=keep, max_tokens=1)
        assert sent.pop() == DRAWN[-keep:]


@pytest.mark.parametrize("modality", [None, "text", "code"])
async def test_logprobs_are_those_of_the_definition(moe, moe_folder, sent, modality):
    fields = {"prompt_logprobs": 0, "return_token_ids": True, "temperature": 0, "ignore_eos": True, "max_tokens": 12}
    prompt = FENCED + " and ``` then"  # ends in code, unless `modality` says else
    choice = await moe.choice(prompt, modality=modality, **fields)
    modalities = [int(mark == "c") for mark in sent[0]]
    reference = DynamicMoEReference(moe_folder)
    ids = choice["prompt_token_ids"]
    expected = reference.logits(ids, modalities).log_softmax(-1)
    expected = [float(row[i]) for row, i in zip(expected, ids[1:], strict=False)]
    assert logprobs_of(choice["prompt_logprobs"], ids) == pytest.approx(expected, abs=1e-3)
    assert choice["token_ids"] == reference.greedy(ids, 12, modalities)


async def test_the_prefix_cache_mixes_no_modalities(moe):
    fields = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "logprobs": 0, "cache_salt": "its own"}
    prompt = "one two three four " * 8
    answers = {}
    for modality, _ in itertools.product(("text", "code"), (1, 2)):
        answer = await moe.complete(prompt, modality=modality, **fields)
        answers.setdefault(modality, []).append(answer)
    for first, second in answers.values():
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
        assert first["choices"][0]["text"] == second["choices"][0]["text"]
    logprobs = [answers[modality][0]["choices"][0]["logprobs"]["token_logprobs"] for modality in ("text", "code")]
    assert logprobs[0] != pytest.approx(logprobs[1], abs=1e-3)


async def test_a_crowd_of_both_is_answered_as_each_alone(moe):
    fields = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    asked = [(f"{number} {FENCED}", modality) for number in range(4) for modality in ("text", "code", None)]
    alone = [(await moe.choice(prompt, modality=m, cache_salt="a", **fields))["text"] for prompt, m in asked]
    crowd = await asyncio.gather(*(moe.choice(p, modality=m, cache_salt="b", **fields) for p, m in asked))
    assert [choice["text"] for choice in crowd] == alone


async def test_responses_and_messages_have_the_field_too(moe, sent):
    plain = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    for path, body in (("/v1/responses", {"input": "a", "max_output_tokens": 2}), ("/v1/messages", plain)):
        for modality, marks in (("code", {"c"}), ("text", {"."})):
            response = await moe.http.post(path, json={**body, "modality": modality})
            assert response.status_code == 200, response.text
            assert set(sent.pop()) == marks
        response = await moe.http.post(path, json={**body, "modality": "image"})
        assert response.status_code == 400
        assert "'modality' is 'image'" in response.json()["error"]["message"]
    fenced = await moe.http.post("/v1/responses", json={"input": FENCED, "max_output_tokens": 2})
    assert DRAWN in sent.pop()
    following = {"input": "and?", "previous_response_id": fenced.json()["id"], "max_output_tokens": 2}
    assert (await moe.http.post("/v1/responses", json=following)).status_code == 200
    assert DRAWN in sent.pop()


async def test_what_is_counted_is_what_is_computed(moe, sent):
    messages = [{"role": "user", "content": [part("text", FENCED), part("code", " x ")]}]
    usage = (await moe.ask(CHAT, messages=messages, max_tokens=1))["usage"]
    counted = await moe.http.post("/tokenize", json={"messages": messages, "add_generation_prompt": True})
    assert counted.json()["count"] == usage["prompt_tokens"] == len(sent[0])


async def test_what_is_filled_in_goes_on_with_what_stands_before_it(serve, moe_engine, moe_folder, sent):
    vocabulary = HFTokenizer.from_file(str(moe_folder / "tokenizer.json"))
    tokenizer = Tokenizer(vocabulary, bos_token=None, eos_token=None, add_bos=False, chat_template=None)
    tokenizer.fill_in_middle = FillInMiddle(1, 2, 3)
    api = await serve(tokenizer, engine=moe_engine)
    await api.complete("a ```b", suffix="c``` d", max_tokens=1)
    await api.complete("a", suffix="``` d", max_tokens=1)
    await api.complete("a", suffix="b", modality="code", max_tokens=1)
    await api.complete("", suffix="b", modality="code", max_tokens=1)
    await api.complete("a", suffix="b```c", modality="text", max_tokens=1)
    assert sent == ["." + ".....c" + "c" + "c....." + "c", "......cc.", "c" * 5, "c" * 4, "." * 9]


async def test_the_model_says_what_modality_can_be(moe):
    assert (await moe.http.get("/v1/models/tiny")).json()["modalities"] == ["text", "code"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("modality", ["image", "audio", "CODE", "", "x" * 64])
async def test_other_modalities_are_refused_by_name(moe, path, modality):
    error = check_error(await moe.post(path, modality=modality), 400, param="modality")
    assert error["message"].endswith("valid here: 'text', 'code'")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_a_model_of_text_alone_takes_text_alone(api, path):
    assert (await api.post(path, modality="text", max_tokens=1)).status_code == 200
    for modality in ("code", "image"):
        error = check_error(await api.post(path, modality=modality), 400, param="modality")
        assert error["message"].endswith("valid here: 'text'")
    check_error(await api.post(path, modality=1), 400, param="modality")


async def test_for_a_model_of_text_alone_code_is_joined_as_text(api, prompts):
    await api.chat([part("text", "a "), part("code", "x = 1 "), {"type": "code", "code": "y"}], max_tokens=1)
    await api.chat("a x = 1 y", max_tokens=1)
    assert prompts[-1] == prompts[0]
    assert "a x = 1 y" in prompts[0]


async def test_parts_of_code_are_bounded(moe, sent):
    content = [part("code", "x")] * 4097
    error = check_error(await moe.post(CHAT, messages=[{"role": "user", "content": content}]), 400, param="messages")
    assert error["message"].endswith("'messages' have 4097 parts of type code; at most 4096 are taken")
    messages = [{"role": "user", "content": content[:200]}, {"role": "user", "content": content[:30]}]
    assert (await moe.post(CHAT, messages=messages, max_tokens=1)).status_code == 200
    assert sent[0].count("c") == 230


async def test_parts_of_code_need_their_text(api):
    for bad in (
        {"type": "code"},
        {"type": "code", "text": "a", "code": "b"},
        {"type": "text", "code": "a"},
        {"type": "code", "refusal": "a"},
        {"type": "text", "text": "a", "code": "b"},
        {"type": "code", "text": 1},
        {"type": "image", "text": "a"},
    ):
        check_error(await api.post(CHAT, messages=[{"role": "user", "content": [bad]}]), 400)

"""What completions and chats have in common, from admission to the last chunk."""

import asyncio
import contextlib
import dataclasses

import pytest

from server.admission import Admission
from server.config import ServerConfig
from server.inputs import preprocess
from server.observe.request_metrics import REFUSALS
from server.pipeline import yielding
from tests.server.conftest import BODIES, CHAT, COMPLETIONS, check_error, check_usage, text_of

GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 12}
NUM_PROMPT_TOKENS = {COMPLETIONS: 2, CHAT: 20}  # of BODIES
LONG = {"max_tokens": 480, "ignore_eos": True, "temperature": 0}


def bound(api, max_prompts=100, max_tokens=100_000, **config):
    """Give a running API new bounds; its admission."""
    admission = Admission(max_prompts, max_tokens)
    state = dataclasses.replace(api.app.state.server, admission=admission, config=ServerConfig(**config))
    api.app.state.server = state
    return admission


@pytest.mark.parametrize("characters", ["", "aé漢"], ids=["any bytes", "many-byte characters"])
@pytest.mark.parametrize("seed", range(10))
async def test_a_streams_pieces_join_to_the_whole_answer(api, path, letters, reference_tokenizer, seed, characters):
    params = {"seed": seed, "temperature": 1, "n": 2, "return_token_ids": True, "max_tokens": 60}
    params |= letters(characters) if characters else {}
    whole = await api.ask(path, **params)
    chunks = await api.stream(path, **params)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        index = choice["index"]
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert text_of(*chunks, choice=index) == text_of(whole, choice=index)
        assert text_of(whole, choice=index) == reference_tokenizer.decode(choice["token_ids"])
        assert [i for part in parts for i in part["token_ids"]] == choice["token_ids"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]


@pytest.mark.parametrize("seed", range(10))
async def test_stop_strings_cut_streamed_and_whole_text_alike(api, path, letters, seed):
    params = letters("ab é") | {"seed": seed}
    text = text_of(await api.ask(path, **params))
    for start, length in ((5, 2), (11, 3), (20, 1), (0, 4)):
        stop = text[start : start + length]
        expected = text[: text.find(stop)]
        whole = await api.ask(path, stop=stop, **params)
        assert (text_of(whole), whole["choices"][0]["finish_reason"]) == (expected, "stop")
        chunks = await api.stream(path, stop=["not there", stop], **params)
        assert text_of(*chunks) == expected
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
async def test_a_stream_has_no_usage_unless_asked(api, path, options):
    chunks = await api.stream(path, stream_options=options, **GREEDY)
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)


async def test_include_usage_adds_a_last_chunk_without_choices(api, path):
    *chunks, last = await api.stream(path, stream_options={"include_usage": True}, **GREEDY)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last.keys() == chunks[0].keys()
    check_usage(last["usage"], NUM_PROMPT_TOKENS[path], 12)
    check_usage((await api.ask(path, **GREEDY))["usage"], NUM_PROMPT_TOKENS[path], 12)


async def test_continuous_usage_is_in_every_chunk_and_grows(api, path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await api.stream(path, stream_options=options, return_token_ids=True, **GREEDY)
    seen = 0
    for chunk in chunks:
        seen += sum(len(choice["token_ids"]) for choice in chunk["choices"])
        check_usage(chunk["usage"], NUM_PROMPT_TOKENS[path], seen)
    assert seen == 12


async def test_usage_in_every_chunk_needs_usage_at_all(api, path):
    response = await api.post(path, stream=True, stream_options={"continuous_usage_stats": True})
    assert "'include_usage'" in check_error(response, 400, param="stream_options")["message"]


async def test_an_unknown_model_is_not_found(api, path):
    response = await api.post(path, model="gpt-4")
    error = check_error(response, 404, type="not_found_error", param="model", code="model_not_found")
    assert "'gpt-4'" in error["message"]
    assert "'tiny'" in error["message"]


async def test_a_full_queue_answers_429_and_when_to_come_back(api, path, monkeypatch):
    with bound(api, max_prompts=1).admit(1, 1):
        monkeypatch.setattr(type(api.tokenizer), "encode", None)  # no work is done on what is refused
        monkeypatch.setattr("server.chat.template_process.TemplateProcess.render", None)
        response = await api.post(path)
        check_error(response, 429, type="rate_limit_error", code="rate_limit_exceeded")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        monkeypatch.undo()
    assert await api.metric("requests_refused_total", reason="queue_full") == 1
    assert (await api.ask(path, max_tokens=1))["choices"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"max_tokens": 10**6}),
        (COMPLETIONS, {"prompt": [1] * 5000}),
        (COMPLETIONS, {"prompt": [10**8]}),
        (COMPLETIONS, {"prompt": "x" * 1_000_000}),
        (CHAT, {"max_tokens": 10**6}),
    ],
)
async def test_what_can_never_fit_is_refused_as_such_while_the_queue_is_full(api, path, body):
    with bound(api, max_prompts=1).admit(1, 1):
        check_error(await api.post(path, **body), 400)


async def test_started_requests_make_room_and_every_exit_gives_back(api):
    admission = bound(api, max_prompts=4)
    running = [asyncio.create_task(api.stream(COMPLETIONS, **LONG)) for _ in range(2)]

    async def both_run():
        return await api.metric("requests_running") == 2 and admission.num_prompts == 0

    await api.until(both_run)
    check_error(await api.post(COMPLETIONS, prompt="x" * 100_000), 400)
    check_error(await api.post(COMPLETIONS, max_tokens=10**6), 400)
    check_error(await api.post(CHAT, messages=[{"role": "wizard", "content": "hi"}]), 400)
    assert admission.num_prompts == 0
    assert len(await api.stream(COMPLETIONS, prompt=["a", "b"], max_tokens=2)) > 0
    assert admission.num_prompts == 0
    for task in running:
        assert text_of(*await task)
    assert (admission.num_prompts, admission.num_tokens) == (0, 0)


async def test_many_more_than_fit_are_answered_or_refused_and_nothing_is_left(api, path):
    admission = bound(api, max_prompts=8)
    responses = await asyncio.gather(*(api.post(path, max_tokens=20) for _ in range(120)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    assert (admission.num_prompts, admission.num_tokens) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by", ["request", "server"])
async def test_a_request_past_its_time_is_ended(api, path, by, stream):
    bound(api, **({"request_timeout": 0.02} if by == "server" else {}))
    timeout = {"timeout": 0.02} if by == "request" else {}
    response = await api.post(path, stream=stream, **LONG | timeout)
    if stream:
        assert '"code":"request_timeout"' in response.text
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        check_error(response, 408, type="timeout_error", code="request_timeout")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_waits_too_long_is_refused(api, stream):
    running = [asyncio.create_task(api.stream(COMPLETIONS, **LONG)) for _ in range(16)]

    async def full():
        return await api.metric("requests_running") == 16

    await api.until(full)
    bound(api, queue_timeout=0.05)  # only now: on a busy machine the others may wait longer
    late = await api.post(COMPLETIONS, prompt="late", max_tokens=1, stream=stream)
    if stream:
        assert '"code":"rate_limit_exceeded"' in late.text
    else:
        check_error(late, 429, code="rate_limit_exceeded")
    refused = {reason: await api.metric("requests_refused_total", reason=reason) for reason in REFUSALS}
    assert refused == dict.fromkeys(REFUSALS, 0) | {"queue_timeout": 1}
    for task in running:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_request_whose_text_is_too_long_is_tokenised_by_nobody(api, path, monkeypatch):
    monkeypatch.setattr(type(api.tokenizer), "encode", None)
    [param] = BODIES[path]
    text = "a" * 10_000
    body = {param: text if path == COMPLETIONS else [{"role": "user", "content": text}]}
    check_error(await api.post(path, **body), 400, code="context_length_exceeded", param=param)


async def test_long_texts_are_tokenised_beside_the_event_loop(api, monkeypatch):
    """In a thread of their own; the tokens are the same."""
    threads = []
    to_thread = asyncio.to_thread

    def noted(function, *arguments, **named):
        threads.append(getattr(function, "func", function))
        return to_thread(function, *arguments, **named)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    monkeypatch.setattr("server.state._LONG_TEXT", 3)
    short, long = await api.complete("abc", **GREEDY), await api.complete("abcd", return_token_ids=True, **GREEDY)
    assert threads.count(preprocess) == 1
    assert short["usage"]["prompt_tokens"] == 3
    assert long["choices"][0]["prompt_token_ids"] == api.tokenizer.encode("abcd")


async def test_others_run_between_the_items_of_a_long_request():
    order = []

    async def other():
        for _ in range(3):
            order.append("other")
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    async for item in yielding("abc"):
        order += [item]
    await beside
    assert order == ["a", "other", "b", "other", "c", "other"]

"""Answers that the guard reads while they grow: what it flags is never sent, in any API, streamed or not."""

import asyncio
import json
import re

import pytest

from tests.server.conftest import CHAT, COMPLETIONS, check_error, parse_events, text_of

TEXT = "it all begins well, then come bad things"
TAIL = "." * 300  # the engine goes on until it hears that nobody wants more
LONG = {"max_tokens": 340}


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def stream(request):
    return request.param


async def answers(api, path, stream, **body):
    """The answer, or a stream's chunks, and all that was sent."""
    response = await api.post(path, stream=stream, **LONG | body)
    assert response.status_code == 200, response.text
    return parse_events(response.text) if stream else [response.json()], response.text


def reasons_of(chunks, choice=0):
    return [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["index"] == choice]


@pytest.mark.parametrize("window", [1, 4, 7, 1000])
async def test_an_answer_ends_before_what_is_flagged(guard, speak, path, stream, window):
    guarded = await guard(window=window)
    speak(TEXT + TAIL)
    chunks, sent = await answers(guarded.api, path, stream)
    text = text_of(*chunks)
    assert TEXT.startswith(text)
    assert "bad" not in re.sub(r'"id":"[^"]*"', "", sent), "an id may have these letters"
    assert not text or text in guarded.read, "it has passed as it is"
    assert reasons_of(chunks)[-1] == "content_filter"
    await guarded.api.until_idle()
    assert await guarded.api.metric("guard_checks_total", checked="output", result="flagged") == 1


async def test_an_answer_that_passes_is_the_same_in_larger_pieces(guard, speak, path, stream):
    guarded = await guard(window=6)
    speak("a fine answer, in parts")
    chunks, _ = await answers(guarded.api, path, stream)
    assert text_of(*chunks) == "a fine answer, in parts"
    assert reasons_of(chunks) == [None] * (len(chunks) - 1) + ["stop"]
    assert len(chunks) <= 5
    assert guarded.read[-1] == "a fine answer, in parts"


async def test_tokens_and_logprobs_wait_as_the_text_does(guard, letters, path, stream):
    guarded = await guard(lambda text: len(text) > 20)
    logprobs = {"logprobs": 2 if path == COMPLETIONS else True, "return_token_ids": True}
    chunks, _ = await answers(guarded.api, path, stream, **logprobs, **letters("abc"))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = text_of(*chunks)
    assert len(text) <= 20
    assert reasons_of(chunks)[-1] == "content_filter"
    assert sum(len(choice["token_ids"]) for choice in choices) == len(text)
    reports = [choice["logprobs"] for choice in choices]
    tokens = [t for r in reports for t in (r["tokens"] if path == COMPLETIONS else [t["token"] for t in r["content"]])]
    assert "".join(tokens) == text


async def test_an_echoed_prompt_with_logprobs_is_given_where_all_of_the_answer_is_flagged(guard, letters):
    guarded = await guard(lambda text: len(text) > 20, window=1000)
    body = {"prompt": "hello", "echo": True, "logprobs": 1, **letters("abc")}
    [answer], _ = await answers(guarded.api, COMPLETIONS, False, **body)
    assert text_of(answer) == "hello"
    assert answer["choices"][0]["logprobs"]["tokens"] == list("hello")
    assert reasons_of([answer]) == ["content_filter"]


async def test_one_choice_of_several_ends_and_the_others_go_on(guard, api, path, stream):
    free = await api.ask(path, n=3, seed=5, max_tokens=30, ignore_eos=True)
    texts = [text_of(free, choice=i) for i in range(3)]
    start = texts[1][:8]
    assert not any(text.startswith(start) for text in (texts[0], texts[2]))
    guarded = await guard(lambda text: text.startswith(start))
    chunks, _ = await answers(guarded.api, path, stream, n=3, seed=5, max_tokens=30, ignore_eos=True)
    assert [text_of(*chunks, choice=i) for i in (0, 2)] == [texts[0], texts[2]]
    assert start.startswith(text_of(*chunks, choice=1))
    assert [reasons_of(chunks, i)[-1] for i in range(3)] == ["length", "content_filter", "length"]
    await guarded.api.until_idle()
    assert await guarded.api.metric("guard_checks_total", checked="output", result="flagged") == 1


async def test_the_best_of_several_is_one_that_passed(guard, api):
    free = await api.complete("hi", n=3, seed=5, max_tokens=12, ignore_eos=True)
    texts = [choice["text"] for choice in free["choices"]]
    guarded = await guard(lambda text: text.startswith((texts[0][:3], texts[1][:3])))
    choice = await guarded.api.choice("hi", best_of=3, seed=5, max_tokens=12, ignore_eos=True)
    assert (choice["text"], choice["finish_reason"]) == (texts[2], "length")


async def test_responses_are_incomplete(guard, speak, stream):
    guarded = await guard()
    speak(TEXT + TAIL)
    body = {"input": "hi", "stream": stream}
    response = await guarded.api.http.post("/v1/responses", json=body)
    assert "bad" not in response.text
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    answer = events[-1]["response"] if stream else response.json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "content_filter"}
    assert all(TEXT.startswith(item["content"][0]["text"]) for item in answer["output"])
    if stream:
        assert events[-1]["type"] == "response.incomplete"


async def test_messages_are_refusals(guard, speak, stream):
    guarded = await guard()
    speak(TEXT + TAIL)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 340, "stream": stream}
    response = await guarded.api.http.post("/v1/messages", json=body)
    assert "bad" not in response.text
    if not stream:
        assert response.json()["stop_reason"] == "refusal"
        return
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert [e["delta"]["stop_reason"] for e in events if e["type"] == "message_delta"] == ["refusal"]
    assert events[-1]["type"] == "message_stop"


async def test_a_slow_guard_makes_parts_larger_and_not_more(guard, speak):
    guarded = await guard(lambda text: False if text == "hi" else None, window=1)
    speak("twenty letters of it")
    asking = asyncio.create_task(guarded.api.stream(COMPLETIONS, max_tokens=40))

    async def is_generated():
        finished = await guarded.api.metric("sequences_finished_total", finished_reason="stop")
        return finished == 1 and len(guarded.read) > 1

    await guarded.api.until(is_generated)
    [_, first] = guarded.read
    guarded.engine.answer_all(lambda request: [9.0, 0.0])
    chunks = await asking
    texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
    assert texts[0] == first
    assert "".join(texts) == "twenty letters of it"
    assert len(texts) <= 2


async def test_a_guard_that_dies_ends_the_answer_unread(guard, speak, path, stream):
    guarded = await guard(lambda text: False if text == "hi" else None)
    speak(TEXT + TAIL)
    asking = asyncio.create_task(guarded.api.post(path, stream=stream, **LONG))

    async def is_read():
        return len(guarded.read) > 1

    await guarded.api.until(is_read)
    guarded.engine.fail_all("The guard stopped. Please try again.")
    response = await asking
    assert "begins" not in response.text
    if stream:
        assert parse_events(response.text)[-1]["error"]["code"] == "server_is_overloaded"
    else:
        check_error(response, 503, code="server_is_overloaded")
    await guarded.api.until_idle()


async def test_a_client_that_leaves_ends_checks_and_generation(guard, speak, stream):
    guarded = await guard(lambda text: False if text == "hi" else None)
    speak(TEXT + TAIL)
    asking = asyncio.create_task(guarded.api.post(CHAT, stream=stream, **LONG))

    async def is_read():
        return len(guarded.read) > 1

    await guarded.api.until(is_read)
    asking.cancel()
    await guarded.api.until_idle()
    assert guarded.engine.num_requests == 0


async def test_a_long_answer_is_read_in_its_end_alone_and_without_gaps(guard, speak):
    guarded = await guard(window=8)
    text = "".join(chr(ord("a") + i * i % 25) for i in range(400))
    speak(text)
    answer = await guarded.api.choice("hi", max_tokens=410)
    assert answer["text"] == text
    read = guarded.read[1:]
    assert all(len(piece) <= 64 for piece in read)
    for start in range(400 - 32):
        assert any(text[start : start + 32] in piece for piece in read), start
    assert len(read) < 6 * len(text) / 8

"""The load client against a server that answers to the byte: tokens, times, and everything that can go wrong."""

import asyncio

import pytest

from benchmarks.load.runner import Endpoint, run
from benchmarks.load.workload import Lengths, Load, Prompts, Request, Source, generate
from tests.benchmarks.scripted_server import DONE, END, STREAM_HEAD, ScriptedServer, chunk, event, text, usage

REQUEST = Request([1, 2, 3], 5)


async def ask(script, *requests, concurrency=1, **endpoint):
    """The answers to some requests, in a closed loop; and the server."""
    async with ScriptedServer(script) as server:
        result = await run(Endpoint(server.url, **endpoint), [Source(requests or (REQUEST,), concurrency)])
    return result.answers, server


def fixed(*pieces):
    """A script that says the same to everyone."""

    async def script(_):
        for piece in pieces:
            yield piece

    return script


async def test_a_stream_s_tokens_and_usage_are_counted():
    script = fixed(STREAM_HEAD, text("a"), text("b"), text("", finish_reason="length"), usage(3, 3, 2), DONE)
    [answer], server = await ask(script, body={"temperature": 0.5}, model="m")
    assert answer.error is None
    assert (answer.status, answer.finish_reason) == (200, "length")
    assert (answer.output_tokens, answer.prompt_tokens, answer.cached_tokens) == (3, 3, 2)
    assert len(answer.arrivals) == 2  # an empty piece is no token that anyone sees
    assert answer.start <= answer.arrivals[0] <= answer.arrivals[1] <= answer.end
    head, body = server.requests[0]
    assert head.startswith("POST /v1/completions HTTP/1.1\r\n")
    assert "Authorization" not in head
    assert body == {
        "model": "m",
        "prompt": [1, 2, 3],
        "max_tokens": 5,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_token_ids_say_how_many_tokens_a_piece_has():
    pieces = [text("a", token_ids=[1, 2]), text("b", token_ids=[3, 4, 5]), text("c", token_ids=[6])]
    [answer], _ = await ask(fixed(STREAM_HEAD, *pieces, usage(3, 6), DONE))
    assert answer.counts == [2, 3, 1]
    assert sum(weight for _, weight in answer.gaps()) == 5


async def test_without_usage_pieces_are_counted():
    [answer], _ = await ask(fixed(STREAM_HEAD, text("a"), text("b"), text("c"), DONE))
    assert (answer.error, answer.usage_tokens, answer.output_tokens) == (None, None, 3)


async def test_pieces_that_the_network_cuts_or_joins_are_put_together():
    whole = (
        STREAM_HEAD + text("a") + chunk(b'data: {"choices": [{"index": 0, "te') + chunk(b'xt": "b"}]}\r\n\r\n') + DONE
    )
    for step in (1, 7, 1000):
        pieces = [whole[i : i + step] for i in range(0, len(whole), step)]
        [answer], _ = await ask(fixed(*pieces))
        assert (answer.error, len(answer.arrivals)) == (None, 2)


async def test_chat_counts_content_and_reasoning_and_not_the_role():
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "a"}, {}]
    pieces = [event(choices=[{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    request = Request("Hello", 5, prefix="Be brief.", key="secret", priority=2)
    [answer], server = await ask(fixed(STREAM_HEAD, *pieces, usage(9, 2), DONE), request, chat=True)
    assert (answer.error, len(answer.arrivals)) == (None, 2)
    head, body = server.requests[0]
    assert head.startswith("POST /v1/chat/completions ")
    assert "Authorization: Bearer secret\r\n" in head
    assert [message["content"] for message in body["messages"]] == ["Be brief.", "Hello"]
    assert body["priority"] == 2


async def test_prefixes_come_first():
    script = fixed(STREAM_HEAD, text("a"), DONE)
    requests = Request([3, 4], 1, prefix=[1, 2]), Request("b", 1, prefix="a")
    _, server = await ask(script, *requests)
    assert [body["prompt"] for _, body in server.requests] == [[1, 2, 3, 4], "a b"]


async def test_a_refusal_is_an_error_with_its_time_and_when_to_come_back():
    refusal = b'HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 14\r\n\r\n{"error": "x"}'
    [answer], _ = await ask(fixed(refusal))
    assert (answer.status, answer.error, answer.retry_after, answer.output_tokens) == (429, "429", 7, 0)
    assert answer.e2e > 0
    [answer], _ = await ask(fixed(refusal.replace(b"7", b"Fri, 31 Dec 1999 23:59:59 GMT")))
    assert (answer.error, answer.retry_after) == ("429", None)


@pytest.mark.parametrize(
    ("pieces", "status", "error"),
    [
        ([STREAM_HEAD, text("a")], 200, "broken off"),  # the server dies in the middle
        ([], 0, "ServerDisconnectedError"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], 0, "ClientResponseError"),
        ([STREAM_HEAD, text("a"), END], 200, "incomplete"),
        ([STREAM_HEAD, text("a"), event(error={"message": "no"}), DONE], 200, "error event"),
        ([STREAM_HEAD, chunk(b"data: {oh\n\n"), DONE], 200, "not JSON"),
    ],
)
async def test_what_goes_wrong_is_told_apart(pieces, status, error):
    answers, _ = await ask(fixed(*pieces), REQUEST, REQUEST)
    assert [(answer.status, answer.error) for answer in answers] == [(status, error)] * 2


async def test_a_server_that_is_not_there():
    async with ScriptedServer(fixed()) as server:
        pass
    result = await run(Endpoint(server.url), [Source([REQUEST, REQUEST], 2)])
    assert [(answer.status, answer.error) for answer in result.answers] == [(0, "ConnectionRefusedError")] * 2


async def test_an_answer_that_does_not_end_is_given_up():
    async def script(_):
        yield STREAM_HEAD
        yield text("a")
        await asyncio.Event().wait()

    [answer], _ = await ask(script, timeout=0.1)
    assert (answer.status, answer.error) == (200, "timeout")


async def test_a_closed_loop_keeps_so_many_open_and_its_connections():
    async def script(_):
        yield STREAM_HEAD
        await asyncio.sleep(0.002)
        yield text("a")
        yield DONE

    answers, server = await ask(script, *[REQUEST] * 40, concurrency=4)
    assert [answer.error for answer in answers] == [None] * 40
    assert server.most_open == server.num_connections == 4


async def test_an_open_loop_waits_for_nobody():
    """The first answer comes only when the last request has."""
    last = asyncio.Event()

    async def script(body):
        if body["max_tokens"] == 9:
            last.set()
        await last.wait()
        yield STREAM_HEAD + text("a")
        yield DONE

    requests = [Request([1], tokens, due=due) for tokens, due in ((1, 0.0), (2, 0.01), (9, 0.02))]
    async with ScriptedServer(script) as server:
        result = await run(Endpoint(server.url), [Source(requests)])
    assert [answer.error for answer in result.answers] == [None] * 3
    assert server.most_open == 3
    starts = sorted(answer.start for answer in result.answers)
    assert [start - starts[0] for start in starts] == pytest.approx([0, 0.01, 0.02])
    assert all(answer.lag < answer.e2e for answer in result.answers)


async def test_keys_run_beside_each_other():
    load = Load(Lengths.parse("3"), Lengths.parse("2"), requests=5)
    sources = [generate(load.of_key(key), Prompts(9), 0) for key in ("a,concurrency=2", "b,rate=inf")]
    async with ScriptedServer(fixed(STREAM_HEAD, text("x"), usage(3, 1), DONE)) as server:
        result = await run(Endpoint(server.url), sources)
    assert sorted(answer.key for answer in result.answers) == ["a"] * 5 + ["b"] * 5
    assert result.seconds > 0
    assert 0 < result.cpu_seconds < 5

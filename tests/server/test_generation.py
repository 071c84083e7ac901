"""How a request's sequences end, and what is counted."""

import pytest

from tests.server.conftest import COMPLETIONS, check_error, parse_events


@pytest.mark.parametrize("stream", [True, False])
async def test_logits_that_are_no_numbers_end_the_request_with_a_server_error(api, say, stream):
    say([65] * 4 + [None])
    response = await api.post(COMPLETIONS, stream=stream, max_tokens=490, ignore_eos=True)
    error = parse_events(response.text)[-1]["error"] if stream else check_error(response, 500)
    assert error["type"] == "server_error"
    assert "not a number" in error["message"]
    await api.until_idle()
    assert await api.metric("sequences_finished_total", finished_reason="error") == 1
    assert await api.metric("sequences_finished_total", finished_reason="abort") == 0


async def test_requests_are_counted(api):
    await api.complete("abc", max_tokens=5, ignore_eos=True, n=2)
    await api.stream(COMPLETIONS, prompt="abcd", max_tokens=7, ignore_eos=True)
    counts = {
        "prompt_tokens_total": 3 + 4,
        "generation_tokens_total": 2 * 5 + 7,
        "e2e_request_latency_seconds_count": 2,
        "time_to_first_token_seconds_count": 3,
        "inter_token_latency_seconds_count": 2 * 4 + 6,
        "request_generation_tokens_sum": 17,
    }
    assert {name: await api.metric(name) for name in counts} == counts
    assert await api.metric("sequences_finished_total", finished_reason="length") == 3


async def test_cached_tokens_of_a_prompt_count_once_whatever_n_is(api):
    prompt = "cached once " * 6
    for cached in (0, 64):
        usage = (await api.complete(prompt, max_tokens=1, n=3))["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": cached}


async def test_a_stop_string_ends_its_sequence_alone(api, letters):
    """The engine is told to end it, and the request's other sequence goes on."""
    params = letters("abcdefgh") | {"seed": 1, "n": 2}
    first, second = [choice["text"] for choice in (await api.complete("x", **params))["choices"]]
    stop = next(first[i : i + 3] for i in range(len(first) - 2) if first[i : i + 3] not in second)
    cut, whole = (await api.complete("x", stop=stop, **params))["choices"]
    assert (cut["text"], cut["finish_reason"]) == (first[: first.find(stop)], "stop")
    assert (whole["text"], whole["finish_reason"]) == (second, "length")
    assert await api.metric("sequences_finished_total", finished_reason="stop") == 1
    assert await api.metric("sequences_finished_total", finished_reason="abort") == 0


async def test_refused_requests_count_for_nothing(api):
    check_error(await api.post(COMPLETIONS, prompt=[999]), 400)
    assert await api.metric("prompt_tokens_total") == 0
    assert await api.metric("e2e_request_latency_seconds_count") == 0
    check_error(await api.post(COMPLETIONS, model="other"), 404)
    check_error(await api.post(COMPLETIONS, max_tokens="many"), 400)
    assert await api.metric("requests_refused_total", reason="invalid") == 3

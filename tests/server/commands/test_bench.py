"""deepseek-serve bench: the figures of a model here and of a server at a URL."""

import json

import pytest

from server.commands import bench
from server.commands.bench_targets import Answer, summarise
from tests.server.commands.scripted import scripted

SMALL = ["--input-len", "8", "--output-len", "4", "--requests", "5"]


def test_a_model_here_is_measured_at_each_concurrency(tiny_llama, capsys):
    model = [str(tiny_llama), "--dtype", "float32", "--threads", "1"]
    assert bench.main([*model, *SMALL, "--concurrency", "1", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["concurrency"], line["completed"]) for line in lines] == [(1, 5), (3, 5)]
    for line in lines:
        assert line["seed"] == 0
        assert line["prompt_tokens_per_second"] == pytest.approx(2 * line["output_tokens_per_second"])
        assert 0 < line["ttft_ms_p50"] <= line["ttft_ms_p99"]
        assert line["tpot_ms_p50"] > 0


def test_a_server_is_measured_by_its_own_count_of_tokens(capsys):
    with scripted() as server:
        usage = {"prompt_tokens": 10, "completion_tokens": 7}
        server.chunks = [{"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}, {"choices": [], "usage": usage}]
        assert bench.main(["--url", server.url, *SMALL, "--concurrency", "2"]) == 0
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["model"], line["completed"]) == ("scripted", 5)
    assert line["output_tokens_per_second"] * line["seconds"] == pytest.approx(35)
    bodies = [body for path, _, body in server.asked if path == "/v1/completions" and body["max_tokens"] == 4]
    assert len(bodies) == 5 + 2  # those that warm it up too
    assert all(len(body["prompt"].split()) == 8 and body["ignore_eos"] for body in bodies)


def test_no_prompt_comes_twice_in_a_measurement(capsys):
    """Else a server's prefix cache makes the later concurrencies look faster."""
    with scripted() as server:
        server.chunks = [{"choices": [{"text": "a"}]}]
        assert bench.main(["--url", server.url, *SMALL, "--concurrency", "1", "2", "3"]) == 0
    prompts = [body["prompt"] for path, _, body in server.asked if path == "/v1/completions"]
    assert len(set(prompts)) == len(prompts) == 2 + 3 * 5


def test_a_server_that_refuses_ends_it(capsys):
    with scripted() as server:
        server.status = 401
        assert bench.main(["--url", server.url, *SMALL]) == 2
    assert "answers with 401" in capsys.readouterr().err


def test_a_context_too_short_is_named(tiny_llama, capsys):
    assert bench.main([str(tiny_llama), "--input-len", "600"]) == 2
    assert "maximum context length" in capsys.readouterr().err


def test_people_get_a_table():
    answers = [Answer(0.0, 0.1, 0.4, 10, 4), Answer(0.0, 0.3, 0.3, 10, 1)]
    figures = {"model": "m", "concurrency": 2, "input_len": 10, "output_len": 4, **summarise(answers, 2.0)}
    first, titles, row = bench.show([figures]).splitlines()
    assert first == "m: 10 tokens in, 4 out"
    assert titles.split()[:3] == ["at", "a", "time"]
    assert row.split() == ["2", "2", "10", "+", "2", "200.0", "ms", "300.0", "ms", "100.0", "ms", "100.0", "ms"]

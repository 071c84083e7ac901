"""What a load asks: lengths, arrivals, keys and files, the same for the same seed."""

import json
import random
import statistics

import pytest

from benchmarks import serve, simulate
from benchmarks.load.workload import Lengths, Load, Prompts, generate, has_times, read

LOAD = Load(Lengths.parse("20"), Lengths.parse("5"), requests=2000, rate=8.0)
IDS = Prompts(vocab_size=50)


def draws(text, number=5000):
    lengths, rng = Lengths.parse(text), random.Random(0)
    return [lengths.draw(rng) for _ in range(number)]


def test_lengths_are_fixed_uniform_or_heavy_tailed():
    assert set(draws("7")) == {7}
    assert set(draws("3-6")) == {3, 4, 5, 6}
    tail = draws("lognormal:90:1.4:2048")
    assert statistics.median(tail) == pytest.approx(90, rel=0.1)
    assert statistics.fmean(tail) > 1.8 * 90
    assert (min(tail) >= 1, max(tail)) == (True, 2048)
    assert [str(Lengths.parse(text)) for text in ("7", "3-6", "lognormal:90:1.4:2048")] == [
        "7",
        "3-6",
        "lognormal:90:1.4:2048",
    ]


@pytest.mark.parametrize(
    "text", ["0", "6-3", "-3", "x", "", "lognormal:90:1", "lognormal:90:-1:100", "lognormal:9:1:3"]
)
def test_a_length_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="is not a length"):
        Lengths.parse(text)


def test_poisson_arrivals_have_their_rate_and_are_repeated_by_a_seed():
    times = [request.due for request in generate(LOAD, IDS, 3).requests]
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 8, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 8, rel=0.1)  # an exponential's is its mean
    assert generate(LOAD, IDS, 3) == generate(LOAD, IDS, 3)
    assert times != [request.due for request in generate(LOAD, IDS, 4).requests]


def test_an_infinite_rate_is_all_at_once_and_none_is_a_closed_loop():
    at_once = generate(LOAD.of_key("k,rate=inf,requests=9"), IDS, 0)
    assert [request.due for request in at_once.requests] == [0.0] * 9
    assert at_once.concurrency is None
    closed = generate(LOAD.of_key("k,concurrency=3,requests=9"), IDS, 0)
    assert {request.due for request in closed.requests} == {None}
    assert closed.concurrency == 3


def test_prompts_have_their_lengths_and_share_their_prefix():
    source = generate(LOAD, Prompts(50, shared_prefix=30), 1)
    assert {len(request.prompt) for request in source.requests} == {20}
    assert {len(request.prefix) for request in source.requests} == {30}
    assert len({tuple(request.prefix) for request in source.requests}) == 1
    assert len({tuple(request.prompt) for request in source.requests}) == 2000
    assert all(0 <= token < 50 for request in source.requests for token in request.prompt)
    words = generate(LOAD, Prompts(None, shared_prefix=30), 1).requests[0]
    assert (len(words.prompt.split()), len(words.prefix.split())) == (20, 30)


def test_each_key_has_its_own_load():
    args = serve.parse(
        [
            "--rate",
            "2",
            "--input-len",
            "9",
            "--api-key",
            "a,rate=1,requests=3,input-len=4-4",
            "--api-key",
            "b,requests=2",
        ]
    )
    a, b = (source.requests for source in args.sources)
    assert [(request.key, len(request.prompt)) for request in a] == [("a", 4)] * 3
    assert [(request.key, len(request.prompt)) for request in b] == [("b", 9)] * 2
    assert "a,rate=1" in serve.settings(args)["api_key"]
    secret = serve.parse(["--api-key", "sk-0123456789,rate=1"])
    assert "sk-01234" in str(serve.settings(secret))
    assert "sk-012345" not in str(serve.settings(secret))


@pytest.mark.parametrize("text", ["k,rate", "k,rate=0", "k,speed=1", "k,requests=0", "k,input-len=x"])
def test_a_key_s_bad_setting_is_refused(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        serve.parse(["--api-key", text])
    assert "error: " in capsys.readouterr().err


TRACE = [
    {"time": 1.5, "prompt": 40, "output": 2, "key": "k", "priority": 3, "prefix": ["system", 30], "weight": 2.0},
    {"time": 0.5, "prompt": 41, "output": 1, "prefix": ["system", 30]},
    {"time": 0.7, "prompt": 5, "output": 7, "prefix": ["other", 30]},
]


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, TRACE)) + "\n")
    return path


def test_a_trace_is_replayed_at_its_times_as_the_simulator_reads_it(trace):
    assert has_times(trace)
    source = read(trace, LOAD, IDS, 0, limit=None, replay=True)
    second, third, first = source.requests
    assert [(r.due, len(r.prefix) + len(r.prompt), r.max_tokens) for r in source.requests] == [
        (arrival.time, arrival.prompt, arrival.output) for arrival in simulate.read_trace(trace)
    ]
    assert first.prefix == second.prefix
    assert third.prefix != first.prefix[: len(third.prefix)]
    assert (first.key, first.priority) == ("k", 3)


def test_a_trace_can_be_sent_at_a_rate_or_in_a_closed_loop_instead(trace):
    [open_loop] = serve.parse(["--dataset", str(trace), "--rate", "inf"]).sources
    assert [request.due for request in open_loop.requests] == [0.0] * 3
    [closed] = serve.parse(["--dataset", str(trace), "--concurrency", "2", "--requests", "2"]).sources
    assert (closed.concurrency, [len(r.prefix) + len(r.prompt) for r in closed.requests]) == (2, [40, 41])
    [replayed] = serve.parse(["--dataset", str(trace)]).sources
    assert [request.due for request in replayed.requests] == [0.5, 0.7, 1.5]


def test_a_dataset_of_prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hello", "max_tokens": 9}\n\n{"prompt": [1, 2, 3]}\n')
    assert not has_times(path)
    [source] = serve.parse(["--dataset", str(path), "--output-len", "5"]).sources
    assert [(request.prompt, request.max_tokens) for request in source.requests] == [("Hello", 9), ([1, 2, 3], 5)]
    assert source.concurrency == 8


@pytest.mark.parametrize("line", ["{", '{"max_tokens": 3}', '{"prompt": 5, "prefix": 3}', ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path, line, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(SystemExit):
        serve.parse(["--dataset", str(path)])
    assert f"{path}" in capsys.readouterr().err

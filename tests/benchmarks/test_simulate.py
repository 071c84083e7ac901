"""What the simulator says of the policies: on a simulated clock, so these are facts, not timings."""

import json
import math
import statistics

import numpy as np
import pytest

from benchmarks import fair_share, simulate
from benchmarks.simulate import Arrival, StepCost


@pytest.fixture(scope="module")
def trace():
    return simulate.heavy_tailed(2000, rate=8)


def test_shortest_first_halves_the_mean_wait_at_the_same_throughput(trace):
    length, fcfs = (simulate.simulate(trace, policy) for policy in ("length", "fcfs"))
    assert statistics.fmean(fcfs.ttft) > 2 * statistics.fmean(length.ttft)
    assert length.throughput == pytest.approx(fcfs.throughput, rel=0.02)


@pytest.mark.parametrize("policy", ["length", "fcfs", "priority", "fair"])
def test_steps_are_full_under_load_and_every_token_comes(trace, policy):
    outcome = simulate.simulate(trace, policy)
    assert outcome.packing >= 0.95
    assert outcome.tokens == sum(arrival.output for arrival in trace)
    assert len(outcome.ttft) == len(trace)


@pytest.mark.parametrize(("prompt", "output"), [(128, 64), (256, 64), (512, 32)])
def test_a_polite_key_is_served_beside_one_that_floods(prompt, output):
    polite, both = fair_share.polite_and_flood(prompt, output)
    alone = simulate.simulate(polite, "fair")
    waits = {policy: simulate.simulate(both, policy).ttft_of_key["polite"] for policy in ("fair", "fcfs")}
    assert np.percentile(waits["fair"], 95) < 2 * np.percentile(alone.ttft, 95)
    assert np.percentile(waits["fcfs"], 50) > 50 * np.percentile(alone.ttft, 50)


def test_a_key_that_always_has_a_prompt_takes_no_more_than_its_share():
    """Its few long prompts go first only until it is BURST tokens ahead; the many short streams of others go on."""
    # Both have asked for enough to keep the server busy; at equal shares, the streams' 29,696 tokens are served while
    # the greedy key gets as many, give or take the burst and what runs at once.
    assert fair_share.served_beside_streams() < 29_696 + 2 * 4096 + 4 * 4001


def test_a_weight_is_a_share_of_the_tokens():
    """Two keys flood; until the first one is through, they get tokens as their weights say."""
    arrivals = [Arrival(0.0, 64, 64, key) for _ in range(300) for key in ("a", "b")]
    even = simulate.simulate(arrivals, "fair").ttft_of_key
    assert statistics.fmean(even["a"]) == pytest.approx(statistics.fmean(even["b"]), rel=0.1)


def test_a_shared_prefix_is_computed_once():
    arrivals = [Arrival(0.0, 1100, 8, prefix=("system", 1024)) for _ in range(64)]
    for budget in (512, 8192):
        outcome = simulate.simulate(arrivals, "length", max_batched_tokens=budget)
        assert outcome.cached > 0.9 * 1024 / 1100


def test_a_target_keeps_steps_short_where_they_would_be_long():
    trace = simulate.heavy_tailed(500, rate=6)
    free = simulate.simulate(trace, "length", prefill_share=math.inf)
    bound = simulate.simulate(trace, "length", target_itl=0.06)
    assert np.percentile(free.itl, 99) > 0.12
    assert np.percentile(bound.itl, 99) < 0.07


def test_shares_keep_steps_short_at_the_same_throughput():
    trace = simulate.heavy_tailed(500, rate=4)
    free, shared = (simulate.simulate(trace, "length", prefill_share=share) for share in (math.inf, 0.8))
    assert np.percentile(shared.itl, 99) < 0.5 * np.percentile(free.itl, 99)
    assert shared.throughput == pytest.approx(free.throughput, rel=0.01)


def test_one_long_prompt_makes_a_streams_tokens_at_most_twice_as_slow():
    """The prompt is computed beside one stream that began before it and ends after it."""
    stream, prompt = Arrival(0.0, 16, 2000), Arrival(1.0, 4000, 1)
    outcome = simulate.simulate([stream, prompt], "length")
    assert max(outcome.itl) < 2 * np.median(outcome.itl)
    alone = max(simulate.simulate([prompt], "length").ttft)
    assert max(outcome.ttft) < 2.7 * alone


def test_few_blocks_preempt_and_lose_nothing(trace):
    outcome = simulate.simulate(trace[:200], "length", num_blocks=300, prefill_share=math.inf)
    assert outcome.preemptions > 0
    assert outcome.tokens == sum(arrival.output for arrival in trace[:200])


def test_a_trace_is_read_back(tmp_path, capsys, monkeypatch):
    lines = [
        {"time": 1.0, "prompt": 5, "output": 2, "key": "k"},
        {"time": 0.5, "prompt": 9, "output": 1, "prefix": ["s", 4]},
    ]
    (tmp_path / "trace").write_text("\n".join(map(json.dumps, lines)))
    assert [arrival.prompt for arrival in simulate.read_trace(tmp_path / "trace")] == [9, 5]
    monkeypatch.setattr("sys.argv", ["simulate", "--trace", str(tmp_path / "trace"), "--policy", "fcfs"])
    simulate.main()
    assert json.loads(capsys.readouterr().out)["policy"] == "fcfs"


def test_costs_are_fitted_to_measured_steps(tiny_llama):
    cost, info = simulate.fit(str(tiny_llama), kv_cache_dtype="int8")
    assert isinstance(cost, StepCost)
    assert min(cost.base, cost.decode, cost.prefill, cost.context) >= 0
    assert cost.base + cost.prefill > 0
    memory = simulate.deployed_memory(info, 100)
    assert memory.kv_cache == 100 * 2 * 2 * (16 + 4) * 3 * 16  # keys and values, 2 heads of 16 and a scale, 3 layers
    assert (memory.weights, memory.other) == (info.memory.weights, info.memory.other)


def test_a_window_lets_more_run_at_once_than_all_positions_would():
    arrivals = [simulate.Arrival(0.0, 4000, 300) for _ in range(8)]
    full, local = (
        simulate.simulate(
            arrivals, "fcfs", num_blocks=600, attention=(simulate.parse_attention(text),), prefill_share=4
        )
        for text in ("full", "local:256")
    )
    assert full.tokens == local.tokens == 8 * 300
    assert local.seconds < 0.8 * full.seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local"], "'local' is not full, local:WINDOW or sparse:BLOCK:GLOBAL:LOCAL:RANDOM"),
        (["sparse:24:1:2:0"], "blocks of 16 are no part of sparse blocks of 24"),
    ],
)
def test_attention_that_cannot_be_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        simulate.parse(["--attention", *arguments])
    assert message in capsys.readouterr().err

"""Statistics of a load, against values computed by hand."""

import pytest

from benchmarks.load import report
from benchmarks.load.answer import Answer
from benchmarks.load.runner import Run


def answer(*arrivals, **fields):
    """A good answer that was sent at 0 and ended with its last token."""
    return Answer(**{"status": 200, "arrivals": list(arrivals), "end": arrivals[-1] if arrivals else 0.0, **fields})


def test_percentiles_are_values_that_occurred():
    values = report.distribution((float(value), 1.0) for value in range(20, 0, -1))
    assert values == {"mean": 10.5, "p50": 10, "p90": 18, "p95": 19, "p99": 20, "max": 20}
    assert report.distribution([(7.0, 1.0)]) == dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), 7)
    assert report.distribution([]) == {}


def test_percentiles_heed_weights():
    values = report.distribution([(10.0, 1.0), (1.0, 9.0), (99.0, 0.0)])
    assert values == {"mean": 1.9, "p50": 1, "p90": 1, "p95": 10, "p99": 10, "max": 10}


def test_a_stream_s_latencies():
    times = answer(0.5, 0.6, 0.8, start=0.25, end=0.9)
    assert times.ttft == 0.25
    assert times.tpot == pytest.approx(0.15)
    assert times.e2e == pytest.approx(0.65)
    assert times.gaps() == [(pytest.approx(0.1), 1), (pytest.approx(0.2), 1)]
    single = answer(0.5)
    assert (single.ttft, single.tpot, single.gaps(), single.output_tokens) == (0.5, None, [], 1)
    none = answer()
    assert (none.ttft, none.tpot, none.gaps(), none.output_tokens) == (None, None, [], 0)


def test_a_piece_of_several_tokens_shares_its_wait_among_them():
    told = answer(1.0, 1.5, 1.75, counts=[2, 5, 1], usage_tokens=8)
    assert told.gaps() == [(0.1, 5), (0.25, 1), (0.0, 1)]
    assert told.tpot == pytest.approx(0.75 / 7)
    untold = answer(1.0, 1.5, 1.75, usage_tokens=9)  # 8 tokens after the first, in 2 pieces
    assert untold.gaps() == [(0.125, 4), (0.0625, 4)]
    assert untold.tpot == 0.75 / 8
    for one in (told, untold):
        assert sum(gap * weight for gap, weight in one.gaps()) == pytest.approx(0.75)
        assert sum(weight for _, weight in one.gaps()) == one.output_tokens - 1


def test_output_tokens_are_those_of_usage_then_of_ids_then_of_pieces():
    assert answer(1.0, 2.0, usage_tokens=5, counts=[2, 2]).output_tokens == 5
    assert answer(1.0, 2.0, counts=[2, 2]).output_tokens == 4
    assert answer(1.0, 2.0).output_tokens == 2


RUN = Run(
    [
        answer(0.1, 0.2, 0.3, prompt_tokens=100, cached_tokens=75, usage_tokens=3, key="first-key"),
        answer(0.6, 0.7, prompt_tokens=300, cached_tokens=25, usage_tokens=2, key="first-key"),
        answer(0.2, 1.2, prompt_tokens=100, usage_tokens=2, key="second-key", lag=0.003),
        Answer(key="second-key", end=0.02, status=429, error="429", retry_after=3.0),
        Answer(key="second-key", end=0.04, status=429, error="429"),
        answer(0.1, 0.2, error="broken off", key="second-key"),
    ],
    seconds=4.0,
    cpu_seconds=0.2,
)


def test_throughput_counts_what_was_completed():
    summary = report.summarise(RUN, {})
    assert (summary["requests"], summary["completed"]) == (6, 3)
    assert summary["requests_per_second"] == 0.75
    assert (summary["output_tokens"], summary["output_tokens_per_second"]) == (7, 1.75)
    assert (summary["cached_tokens"], summary["cached_share"]) == (100, 0.2)
    assert (summary["client_cpu_share"], summary["max_client_lag_ms"]) == (0.05, 3)
    assert summary["ttft_ms"]["mean"] == pytest.approx(300)
    assert summary["ttft_ms"]["p50"] == pytest.approx(200)
    assert summary["itl_ms"]["mean"] == pytest.approx((100 + 100 + 100 + 1000) / 4)


def test_errors_are_counted_by_kind():
    errors = report.errors(RUN.answers)
    assert {kind: error["count"] for kind, error in errors.items()} == {"429": 2, "broken off": 1}
    assert (errors["429"]["with_retry_after"], errors["429"]["max_retry_after"]) == (1, 3)
    assert errors["429"]["ms"]["p50"] == pytest.approx(20)
    assert errors["429"]["ms"]["max"] == pytest.approx(40)


@pytest.mark.parametrize(
    ("slo", "num_met"),
    [
        ({"ttft": 100.0}, 1),
        ({"ttft": 600.0}, 3),
        ({"ttft": 600.0, "tpot": 150.0}, 2),
        ({"e2e": 699.0}, 1),
        ({"ttft": 1.0}, 0),
    ],
)
def test_goodput_is_what_met_every_objective_without_error(slo, num_met):
    summary = report.summarise(RUN, slo)
    assert summary["goodput_requests_per_second"] == num_met / 4
    assert summary["slo_attainment"] == num_met / 6


def test_each_key_has_its_own_figures_under_a_name_that_is_no_secret():
    keys = report.summarise(RUN, {})["keys"]
    assert keys.keys() == {"first-ke", "second-k"}
    assert keys["first-ke"]["ttft_ms"]["max"] == pytest.approx(600)
    assert keys["second-k"]["requests"] == 4
    assert keys["second-k"]["errors"]["429"]["count"] == 2
    assert "keys" not in report.summarise(Run(RUN.answers[:2], 1.0, 0.1), {})


def test_the_table_has_all_that_is_asked():
    table = report.table(report.summarise(RUN, {"ttft": 600.0}))
    for piece in ("3 of 6 requests", "1.8 output tokens/s", "20.0% cached", "ttft <= 600 ms: 50.0%", "429: 2", "key "):
        assert piece in table
    assert "first-key" not in table


@pytest.mark.parametrize("text", ["ttft", "itl=5", "ttft=", "=5"])
def test_an_objective_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        report.parse_slo(text)
    assert report.parse_slo("tpot=50") == ("tpot", 50)


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(RUN.answers, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

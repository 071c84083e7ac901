"""Latencies of a simulated deployment: the real batcher and KV cache manager on a simulated clock, without a model.

    python -m benchmarks.simulate --requests 2000 --rate 4                     # every policy on a heavy-tailed trace
    python -m benchmarks.simulate --fit smollm2 --rate 4                       # with measured step times
    python -m benchmarks.simulate --trace requests.jsonl --policy length fair  # a recorded trace

A trace has one JSON object a line: {"time": seconds, "prompt": tokens, "output": tokens}. Optional keys are "key",
"weight", "priority" and "prefix"; requests with the same prefix share their first tokens: {"prefix": ["system", 1024]}.

The time of a step is `base + decode * decodes + prefill * prompt tokens + context * attended positions`; --fit measures
the four costs on a model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.chunk_budget import fit_costs
from engine.dynamic_batcher import PREFILL_SHARE, DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import POLICIES
from engine.protocol import SamplingParams, Terms
from engine.sequence import Sequence
from engine.step import SampledToken, StepPlan, StepResult


@dataclass(frozen=True)
class StepCost:
    """Seconds for each step, each decode, each prompt token and each attended position.

    The defaults were measured with SmolLM2-135M in bfloat16 on two AVX-512 cores.
    """

    base: float = 6.5e-3
    decode: float = 0.7e-3
    prefill: float = 0.32e-3
    context: float = 0.4e-6

    def of(self, plan: StepPlan) -> float:
        """Seconds of a step."""
        context = sum(item.context_len for item in plan.scheduled)
        prefill = plan.num_tokens - plan.num_decodes
        return self.base + self.decode * plan.num_decodes + self.prefill * prefill + self.context * context


@dataclass(frozen=True)
class Arrival:
    """One request of a trace."""

    time: float
    prompt: int
    output: int
    key: str = ""
    priority: int = 0
    weight: float = 1.0
    prefix: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if min(self.prompt, self.output) < 1 or self.weight <= 0 or self.time < 0:
            raise ValueError(f"{self}: prompt and output must be at least 1, weight more than 0, time not negative")


@dataclass
class Outcome:
    """The results of a trace under one policy; times in seconds."""

    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    ttft_of_key: dict[str, list[float]] = field(default_factory=dict)
    ends_of_key: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    packing: float = 0.0
    preemptions: int = 0
    cached: float = 0.0

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return self.tokens / self.seconds


def heavy_tailed(num_requests: int, rate: float, seed: int = 0) -> list[Arrival]:
    """Poisson arrivals with log-normal lengths: most prompts and outputs are short, a few very long."""
    rng = random.Random(seed)
    now, arrivals = 0.0, []
    for _ in range(num_requests):
        now += rng.expovariate(rate)
        prompt, output = (
            min(int(rng.lognormvariate(4.5, 1.4)) + 4, 4096),
            min(int(rng.lognormvariate(3.5, 0.9)) + 1, 512),
        )
        arrivals.append(Arrival(now, prompt, output))
    return arrivals


def simulate(
    arrivals: list[Arrival],
    policy: str,
    cost: StepCost | None = None,
    *,
    max_batch_size: int = 32,
    max_batched_tokens: int = 512,
    num_blocks: int = 8192,
    block_size: int = 16,
    target_itl: float | None = None,
    prefill_share: float = PREFILL_SHARE,
) -> Outcome:
    """Run a trace to its end. No model runs; each step costs one scheduling decision."""
    cost = cost or StepCost()
    cache = KVCacheManager(num_blocks, block_size)
    batcher = DynamicBatcher(
        cache, max_batch_size, max_batched_tokens, policy=policy, target_itl=target_itl, prefill_share=prefill_share
    )
    outcome, now, due = Outcome(), 0.0, 0
    last_token: dict[str, float] = {}
    while due < len(arrivals) or batcher.has_work:
        if not batcher.has_work:
            now = max(now, arrivals[due].time)
        while due < len(arrivals) and arrivals[due].time <= now:
            batcher.add(_sequence(str(due), arrivals[due]))
            due += 1
        plan = batcher.schedule(now)
        seconds = cost.of(plan)
        now += seconds
        tokens = [SampledToken(7) for item in plan.scheduled if item.sample is not None]
        for output in batcher.update(plan, StepResult(tokens)):
            arrival = arrivals[int(output.request_id)]
            if output.request_id in last_token:
                outcome.itl.append(now - last_token[output.request_id])
            else:
                outcome.ttft.append(now - arrival.time)
                outcome.ttft_of_key.setdefault(arrival.key, []).append(now - arrival.time)
            last_token[output.request_id] = now
            outcome.tokens += 1
            if output.finish_reason is not None:
                outcome.ends_of_key.setdefault(arrival.key, []).append(now)
        batcher.observe(plan, seconds)
    batcher.check_idle()
    stats = batcher.stats()
    outcome.seconds, outcome.steps, outcome.preemptions = now, stats.num_steps, stats.num_preemptions
    outcome.packing = stats.packing / max(stats.num_steps, 1)
    outcome.cached = stats.num_cached_tokens / max(stats.num_prompt_tokens, 1)
    return outcome


def fit(model: str | None) -> StepCost:
    """Measure several kinds of steps on a model, and fit the four costs."""
    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.protocol import GenerateRequest

    engine = Engine.load(EngineConfig(model=model, prefix_caching="off", max_batch_size=32, max_batched_tokens=512))
    rows, times, rng = [], [], random.Random(0)
    schedule = engine.batcher.schedule
    plans: list[StepPlan] = []
    engine.batcher.schedule = lambda now: plans.append(schedule(now)) or plans[-1]  # type: ignore[method-assign, func-returns-value]
    for num_seqs, length in ((1, 16), (1, 512), (4, 64), (8, 128), (32, 32), (32, 128), (16, 400), (32, 16)):
        for _ in range(num_seqs):
            prompt = [rng.randrange(engine.info.vocab_size) for _ in range(min(length, engine.info.max_seq_len - 12))]
            params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
            engine.add(GenerateRequest(f"{rng.random()}", prompt, params, 1, Terms(time.monotonic())))
        while engine.has_work:
            started = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - started)
            plan = plans[-1]
            context = sum(item.context_len for item in plan.scheduled)
            rows.append([1, plan.num_decodes, plan.num_tokens - plan.num_decodes, context])
    return StepCost(*fit_costs(np.array(rows, dtype=float), np.array(times)))


def read_trace(path: Path) -> list[Arrival]:
    """Arrivals from a file of JSON lines, in order of time."""
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    arrivals = [
        Arrival(**{**entry, "prefix": tuple(entry["prefix"]) if entry.get("prefix") else None}) for entry in entries
    ]
    return sorted(arrivals, key=lambda arrival: arrival.time)


def _sequence(name: str, arrival: Arrival) -> Sequence:
    shared, length = arrival.prefix or ("", 0)
    number = int(name) + 1
    token_ids = [hash(shared) % 1_000_003] * min(length, arrival.prompt)
    token_ids += [-number] * (arrival.prompt - len(token_ids))
    return Sequence(
        request_id=name,
        index=0,
        token_ids=token_ids,
        num_prompt_tokens=arrival.prompt,
        sampling=SamplingParams(max_tokens=arrival.output, ignore_eos=True),
        seed=0,
        stop_token_ids=frozenset(),
        terms=Terms(arrival.time, arrival.priority, arrival.key.encode(), arrival.weight),
    )


def main() -> None:
    """Print a JSON line for each policy on stdout and a table on stderr; draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals per second (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", type=Path, help="a recorded trace instead of a synthetic one")
    parser.add_argument("--policy", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--fit", nargs="?", const="", metavar="MODEL", help="measure step times on this model")
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--max-batched-tokens", type=int, default=512)
    parser.add_argument("--num-kv-blocks", type=int, default=8192)
    parser.add_argument("--target-itl", type=float, help="milliseconds")
    parser.add_argument("--prefill-share", type=float, default=PREFILL_SHARE)
    parser.add_argument("--plot", type=Path, help="write TTFT and inter-token latency as curves (needs matplotlib)")
    args = parser.parse_args()
    if args.max_batched_tokens < args.max_batch_size:
        parser.error("--max-batched-tokens must be at least --max-batch-size")
    if min(args.requests, args.rate, args.max_batch_size, args.num_kv_blocks) <= 0:
        parser.error("--requests, --rate, --max-batch-size and --num-kv-blocks must be more than 0")
    try:
        arrivals = read_trace(args.trace) if args.trace else heavy_tailed(args.requests, args.rate, args.seed)
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"--trace: {error}")
    most = args.num_kv_blocks * 16
    if not arrivals or (long := [a for a in arrivals if a.prompt + a.output > most]):
        parser.error(f"a request of {long[0]} can never fit {most} tokens" if arrivals else "the trace is empty")
    cost = StepCost() if args.fit is None else fit(args.fit or None)
    sys.stderr.write(f"a step costs {dataclasses.asdict(cost)}\n")
    sys.stderr.write(
        f"{'policy':10}{'TTFT mean':>11}{'p50':>9}{'p99':>9}{'ITL p50':>9}{'p99':>9}{'tok/s':>8}{'packing':>9}\n"
    )
    outcomes = {}
    for policy in args.policy:
        outcome = outcomes[policy] = simulate(
            arrivals,
            policy,
            cost,
            max_batch_size=args.max_batch_size,
            max_batched_tokens=args.max_batched_tokens,
            num_blocks=args.num_kv_blocks,
            target_itl=None if args.target_itl is None else args.target_itl / 1000,
            prefill_share=args.prefill_share,
        )
        line = {
            "policy": policy,
            "ttft_mean": float(np.mean(outcome.ttft)),
            **{f"ttft_p{p}": float(np.percentile(outcome.ttft, p)) for p in (50, 99)},
            **{f"itl_p{p}": float(np.percentile(outcome.itl or [0.0], p)) for p in (50, 99)},
            "output_tokens_per_second": outcome.throughput,
            "packing": outcome.packing,
            "preemptions": outcome.preemptions,
            "cached": outcome.cached,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        times = [line[name] for name in ("ttft_mean", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99")]
        columns = "".join(f"{seconds:{width}.3f}" for seconds, width in zip(times, (11, 9, 9, 9, 9), strict=True))
        sys.stderr.write(f"{policy:10}{columns}{outcome.throughput:8.0f}{outcome.packing:9.3f}\n")
    if args.plot:
        _plot(outcomes, args.plot)


def _plot(outcomes: dict[str, Outcome], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install matplotlib")

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("ttft", "itl"), ("time to first token", "inter-token latency"), strict=True
    ):
        for policy, outcome in outcomes.items():
            values = np.sort(getattr(outcome, name))
            axes.plot(values, np.linspace(0, 1, len(values)), label=policy)
        axes.set(
            xscale="log", xlabel=f"{label} (s)", ylabel="share of tokens" if name == "itl" else "share of requests"
        )
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()

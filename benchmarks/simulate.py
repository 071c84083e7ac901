"""Latencies of a simulated deployment: the real batcher and KV cache manager on a simulated clock, without a model.

    python -m benchmarks.simulate --requests 2000 --rate 4                     # every policy on a heavy-tailed trace
    python -m benchmarks.simulate --fit smollm2 --rate 4                       # with measured step times
    python -m benchmarks.simulate --trace requests.jsonl --policy length fair  # a recorded trace
    python -m benchmarks.simulate --attention full local:256 --num-kv-blocks 1024  # layers of two kinds

A trace has one JSON object a line: {"time": seconds, "prompt": tokens, "output": tokens}. Optional keys are "key",
"weight", "priority" and "prefix"; requests with the same prefix share their first tokens: {"prefix": ["system", 1024]}.

The time of a step is `base + decode * decodes + prefill * prompt tokens + context * attended positions`; --fit measures
the four costs on a model, and the memory that it takes with a KV cache of --num-kv-blocks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from tqdm import tqdm

from benchmarks.load.report import plot_shares
from benchmarks.load.workload import parse_rate, positive
from engine.cache_groups import group_layers
from engine.chunk_budget import fit_costs
from engine.config import flag
from engine.dynamic_batcher import PREFILL_SHARE, DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import POLICIES
from engine.protocol import SamplingParams, SchedulingParams
from engine.retention import longest
from engine.sequence import Sequence
from engine.step import SampledToken, StepPlan, StepResult
from kernels.attention_pattern import FULL, BlockSparseAttention, FullAttention, LocalAttention
from server.commands.output import report, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.engine_info import EngineInfo, EngineMemory
    from kernels.attention_pattern import AttentionPattern

_OF_FIT = ("dtype", "quantization", "activations", "kv_cache_dtype")
TIMES = ("ttft_mean", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99")


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
        _, decodes, prefill, context = counts(plan)
        return self.base + self.decode * decodes + self.prefill * prefill + self.context * context


def counts(plan: StepPlan) -> tuple[int, int, int, int]:
    """What the four costs of a step are multiplied by."""
    return 1, plan.num_decodes, plan.num_prompt_tokens, sum(item.context_len for item in plan.scheduled)


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
        prompt, output = int(rng.lognormvariate(4.5, 1.4)) + 4, int(rng.lognormvariate(3.5, 0.9)) + 1
        arrivals.append(Arrival(now, min(prompt, 4096), min(output, 512)))
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
    attention: tuple[AttentionPattern, ...] = (FULL,),
    on_end: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run a trace to its end. No model runs; each step costs one scheduling decision. `on_end` hears of each end."""
    cost = cost or StepCost()
    windows = group_layers(attention).windows(block_size)
    cache = KVCacheManager(num_blocks, block_size, windows=windows, max_batched_tokens=max_batched_tokens)
    batcher = DynamicBatcher(
        cache, max_batch_size, max_batched_tokens, policy=policy, target_itl=target_itl, prefill_share=prefill_share
    )
    outcome, now, due = Outcome(), 0.0, 0
    last_token: dict[str, float] = {}
    while due < len(arrivals) or batcher.has_work:
        if not batcher.has_work:
            now = max(now, arrivals[due].time)
        while due < len(arrivals) and arrivals[due].time <= now:
            batcher.add(sequence(due, arrivals[due]))
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
                on_end()
        batcher.observe(plan, seconds)
    batcher.check_idle()
    stats = batcher.stats()
    outcome.seconds, outcome.preemptions = now, stats.num_preemptions
    outcome.packing = stats.packing / max(stats.num_steps, 1)
    outcome.cached = stats.num_cached_tokens / max(stats.num_prompt_tokens, 1)
    return outcome


def fit(model: str | None, **options: str) -> tuple[StepCost, EngineInfo]:
    """Measure several kinds of steps on a model, and fit the four costs; what the engine says of itself, too.

    `options` are settings of the engine.
    """
    from benchmarks.offline import compute  # imports torch
    from engine.build import load_engine
    from engine.config import EngineConfig

    limits = {"prefix_caching": "off", "max_batch_size": 32, "max_batched_tokens": 512}
    engine = load_engine(EngineConfig(model=model, **limits, **options))
    sizes = ((1, 16), (1, 512), (4, 64), (8, 128), (32, 32), (32, 128), (16, 400), (32, 16))
    longest = engine.info.max_seq_len - 12
    steps = [
        step for num_seqs, length in sizes for step in compute(engine, num_seqs, min(length, longest), 12, seed=0)[0]
    ]
    rows, times = [counts(plan) for plan, _ in steps], [seconds for _, seconds in steps]
    return StepCost(*fit_costs(np.array(rows, dtype=float), np.array(times))), engine.info


def deployed_memory(info: EngineInfo, num_blocks: int) -> EngineMemory:
    """The memory of the measured engine, with a KV cache of so many blocks."""
    return msgspec.structs.replace(info.memory, kv_cache=info.memory.kv_cache // info.num_blocks * num_blocks)


def read_trace(path: Path) -> list[Arrival]:
    """Arrivals from a file of JSON lines, in order of time."""
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    for entry in entries:
        entry["prefix"] = tuple(entry["prefix"]) if entry.get("prefix") else None
    return sorted((Arrival(**entry) for entry in entries), key=lambda arrival: arrival.time)


def parse_attention(text: str) -> AttentionPattern:
    """The attention of a layer: full, local:WINDOW or sparse:BLOCK:GLOBAL:LOCAL:RANDOM."""
    kind, *numbers = text.split(":")
    patterns = {"full": FullAttention, "local": LocalAttention, "sparse": BlockSparseAttention}
    try:
        pattern: AttentionPattern = patterns[kind](*map(int, numbers))
    except (KeyError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not full, local:WINDOW or sparse:BLOCK:GLOBAL:LOCAL:RANDOM"
        ) from error
    return pattern


def sequence(number: int, arrival: Arrival) -> Sequence:
    """The sequence of an arrival; its tokens are its own, but for those of its prefix."""
    shared, length = arrival.prefix or ("", 0)
    token_ids = [hash(shared) % 1_000_003] * min(length, arrival.prompt)
    token_ids += [-number - 1] * (arrival.prompt - len(token_ids))
    sampling = SamplingParams(max_tokens=arrival.output, ignore_eos=True)
    scheduling = SchedulingParams(arrival.time, arrival.priority, arrival.key.encode(), arrival.weight)
    return Sequence(str(number), token_ids, arrival.prompt, sampling, scheduling)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse flags, read or make the trace; a mistake ends the program with a message that says what is valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--requests", type=positive, default=2000)
    add("--rate", type=parse_rate, default=4.0, help="arrivals per second (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--trace", type=Path, help="a recorded trace instead of a synthetic one")
    add("--policy", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    add("--fit", nargs="?", const="", metavar="MODEL", help="measure step times and memory on this model")
    for name in _OF_FIT:
        add(flag(name), help="with --fit: as of deepseek-serve")
    add("--max-batch-size", type=positive, default=32)
    add("--max-batched-tokens", type=positive, default=512)
    add("--num-kv-blocks", dest="num_blocks", metavar="NUM_KV_BLOCKS", type=positive, default=8192)
    add("--attention", nargs="+", default=[FULL], type=parse_attention, metavar="LAYER", help=parse_attention.__doc__)
    add("--target-itl", type=lambda text: float(text) / 1000, metavar="MS", help="milliseconds")
    add("--prefill-share", type=float, default=PREFILL_SHARE)
    add("--json", action="store_true", help="print JSON on a terminal too")
    add("--plot", type=Path, help="write TTFT and inter-token latency as curves (needs matplotlib)")
    args = parser.parse_args(argv)
    if args.max_batched_tokens < args.max_batch_size:
        parser.error("--max-batched-tokens must be at least --max-batch-size")
    try:
        args.arrivals = read_trace(args.trace) if args.trace else heavy_tailed(args.requests, args.rate, args.seed)
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"--trace: {error}")
    if not args.arrivals:
        parser.error("the trace is empty")
    args.options = {name: value for name in _OF_FIT if (value := getattr(args, name)) is not None}
    if args.options and args.fit is None:
        parser.error(f"{flag(next(iter(args.options)))} is a setting of the model that --fit names")
    args.attention = tuple(args.attention)
    try:
        windows = group_layers(args.attention).windows(16)
    except ValueError as error:
        parser.error(f"--attention: {error}")
    longest_fitting = longest(windows, 16, args.num_blocks, args.max_batched_tokens, 1 << 30)
    if too_long := [a for a in args.arrivals if a.prompt + a.output > longest_fitting]:
        parser.error(f"a request of {too_long[0]} can never fit {longest_fitting} tokens")
    return args


def summarise(policy: str, outcome: Outcome) -> dict[str, Any]:
    """What is printed of a policy; times in seconds."""
    ttft, itl = np.percentile(outcome.ttft, (50, 99)), np.percentile(outcome.itl or [0.0], (50, 99))
    times = dict(zip(TIMES, map(float, (np.mean(outcome.ttft), *ttft, *itl)), strict=True))
    rates = {"output_tokens_per_second": outcome.throughput, "packing": outcome.packing}
    return {"policy": policy, **times, **rates, "preemptions": outcome.preemptions, "cached": outcome.cached}


def show(cost: StepCost, memory: EngineMemory | None, lines: list[dict[str, Any]]) -> str:
    """The results as a table for people."""
    rows = [["policy", "TTFT mean", "p50", "p99", "ITL p50", "p99", "tokens/s", "packing", "preempted", "cached"]]
    for line in lines:
        times = [f"{line[name]:.3f} s" for name in TIMES]
        rates = [f"{line['output_tokens_per_second']:.0f}", f"{line['packing']:.1%}"]
        rows.append([line["policy"], *times, *rates, str(line["preemptions"]), f"{line['cached']:.1%}"])
    costs = ", ".join(f"{1e3 * value:.3g} ms {name}" for name, value in dataclasses.asdict(cost).items())
    needs = "" if memory is None else f"it needs {memory.total / 2**30:.2f} GiB of memory: {memory}\n"
    return f"a step costs {costs}\n{needs}{table(rows)}"


def main() -> None:
    """Print a table for people or a JSON line for each policy; draw the plot."""
    args = parse()
    cost, memory = StepCost(), None
    if args.fit is not None:
        cost, info = fit(args.fit or None, **args.options)
        memory = deployed_memory(info, args.num_blocks)
    lines = []
    limits = ("max_batch_size", "max_batched_tokens", "num_blocks", "prefill_share", "target_itl", "attention")
    outcomes = {}
    for policy in args.policy:
        chosen = {name: getattr(args, name) for name in limits}
        with tqdm(total=len(args.arrivals), desc=policy, unit="request", leave=False, disable=None) as bar:
            outcomes[policy] = simulate(args.arrivals, policy, cost, **chosen, on_end=bar.update)
        lines.append(summarise(policy, outcomes[policy]))
        if memory is not None:
            lines[-1]["memory_bytes"] = msgspec.structs.asdict(memory)
    report(show(cost, memory, lines), lines, as_json=args.json)
    if args.plot:
        panels = {"time to first token (s)": "ttft", "inter-token latency (s)": "itl"}
        curves = {
            title: {policy: [(s, 1.0) for s in getattr(outcome, name)] for policy, outcome in outcomes.items()}
            for title, name in panels.items()
        }
        plot_shares(args.plot, curves)


if __name__ == "__main__":
    main()

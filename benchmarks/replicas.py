"""Engine replicas on Ray: what Ray costs beside one process, and what routing by prefixes brings.

    python -m benchmarks.replicas cost --model MODEL          # one process, then Ray with one replica: TTFT, tokens/s
    python -m benchmarks.replicas routing --model MODEL       # two replicas, 64 conversations: cached tokens by router

Prints one JSON line for each server. It needs Ray (make ray-bench), and takes a few minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
from typing import TYPE_CHECKING, Any

import httpx
import ray
from ray import serve
from ray.serve.request_router import RequestRouter

from benchmarks.load import report, workload
from benchmarks.load.runner import Endpoint, run
from benchmarks.load.targets import is_healthy, running
from deploy.ray.app import build_with
from server.commands.child_server import free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.serve.request_router import PendingRequest, RunningReplica

_START_TIMEOUT = 120.0  # seconds


class RandomRouter(RequestRouter):
    """Any replica, for comparison."""

    def initialize_state(self, **_: Any) -> None:
        """Called by Ray; there is no state."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Called by Ray for each request."""
        del pending_request
        return [[random.choice(candidate_replicas)]]


@contextlib.contextmanager
def on_ray(flags: dict[str, Any], router: str = "deploy.ray.router:PrefixRouter") -> Iterator[str]:
    """The URL of the application on a Ray of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    ray.init(num_cpus=8, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_with(router, flags))
        until(lambda: is_healthy(url), _START_TIMEOUT, None)
        yield url
        serve.shutdown()
    finally:
        ray.shutdown()


def measure_cost(args: argparse.Namespace) -> None:
    """Load one process, then one replica on Ray, with the same requests."""
    flags = f"--model {args.model} --threads 1 --num-kv-blocks 4096"
    with running("one process", f"{sys.executable} -m server.cli --port {{port}} {flags}", _START_TIMEOUT) as target:
        _load("one process", target.url, args)
    with on_ray({"model": args.model, "threads": 1, "num-kv-blocks": 4096, "replicas": 1}) as url:
        _load("Ray, one replica", url, args)


def _load(name: str, url: str, args: argparse.Namespace) -> None:
    """One stream at a time, which shows what a request and a token take; then many."""
    endpoint = Endpoint(url, body={"temperature": 0, "ignore_eos": True})
    length, prompts = workload.Lengths(32, 32), workload.Prompts(args.vocab_size, 0)
    for concurrency, requests in ((1, 16), (args.concurrency, 4 * args.concurrency)):
        load = workload.Load(length, workload.Lengths(64, 64), requests, None, concurrency)
        result = asyncio.run(run(endpoint, [workload.generate(load, prompts, f"{concurrency}")]))
        summary = report.summarise(result, {})
        print(json.dumps({"server": name, "concurrency": concurrency, **summary}))


def measure_routing(args: argparse.Namespace) -> None:
    """Hold the same conversations on two replicas, with a cache for all of them and with one that is scarce."""
    for num_blocks in (4096, 12 * args.conversations):
        for router in ("deploy.ray.router:PrefixRouter", "benchmarks.replicas:RandomRouter"):
            flags = {"model": args.model, "threads": 1, "num-kv-blocks": num_blocks, "replicas": 2}
            with on_ray(flags, router) as url:
                prompt, cached = asyncio.run(_converse(url, args))
            figures = {"prompt_tokens": prompt, "cached_tokens": cached, "cached_share": round(cached / prompt, 3)}
            print(json.dumps({"router": router.partition(":")[2], "num_kv_blocks": num_blocks, **figures}))


async def _converse(url: str, args: argparse.Namespace) -> tuple[int, int]:
    """Prompt tokens and cached tokens of all turns: 256 tokens at first, 32 more a turn, half of them answer."""
    rng, free = random.Random(0), asyncio.Semaphore(16)
    totals = [0, 0]
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:

        async def one(history: list[int]) -> None:
            body = {"prompt": history, "max_tokens": 16, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
            async with free:
                answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
            totals[0] += answer["usage"]["prompt_tokens"]
            totals[1] += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            history += answer["choices"][0]["token_ids"] + rng.choices(range(args.vocab_size), k=16)

        histories = [rng.choices(range(args.vocab_size), k=256) for _ in range(args.conversations)]
        for _ in range(args.turns):
            rng.shuffle(histories)
            await asyncio.gather(*map(one, histories))
    return totals[0], totals[1]


def main() -> None:
    """Measure what the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "routing"])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--vocab-size", type=int, default=256, help="prompts are random token ids below this")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4)
    args = parser.parse_args()
    (measure_cost if args.what == "cost" else measure_routing)(args)


if __name__ == "__main__":
    main()

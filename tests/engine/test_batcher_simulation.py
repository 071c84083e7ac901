"""The batcher under random load, watched (tests.support.watched_batcher): quick enough for thousands of seeds."""

import math
import os
import random
from collections import Counter

import pytest

from engine.policies import POLICIES
from engine.protocol import PoolingParams, SchedulingParams
from tests.support.sequences import make_sequence
from tests.support.watched_batcher import WatchedBatcher

STOP = 1
KINDS = (PoolingParams(task="embed"), PoolingParams(task="embed", pooling="mean"))


class Simulation:
    """Random arrivals and aborts on a random small engine, with a sampler that draws random tokens."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        is_flood = rng.random() < 0.25  # one tenant has the whole batch when the others come
        self.num_of_one = 20 if is_flood else rng.choice([0, 0, 12])  # requests of that tenant that come first
        max_batch_size = rng.randint(5, 8) if is_flood else rng.randint(1, 8)
        few = [1, rng.randint(2, 24), rng.randint(2, 24)]
        max_passed, look_ahead = rng.choice([(32, 8), (1, 8), (2, 1), (5, 2)])
        self.watched = WatchedBatcher(
            num_blocks=rng.choice([*([] if is_flood else few), rng.randint(24, 100)]),
            block_size=rng.choice([1, 2, 4, 16]),
            max_batch_size=max_batch_size,
            budget=max_batch_size + rng.choice([40] if is_flood else [0, 1, 7, 40]),
            policy="fair" if is_flood else rng.choice(list(POLICIES)),
            target_itl=rng.choice([None, None, 0.01]),
            prefill_share=rng.choice([0.8, 2.0, math.inf]),
            prefix_caching=rng.random() < 0.7,
            max_passed=max_passed,
            look_ahead=look_ahead,
            burst=rng.choice([0, 30, 100]),
            background_share=rng.choice([0.0, 0.5, 2.0]),
        )
        self.capacity = min(self.watched.num_blocks * self.watched.block_size, rng.choice([9, 25, 60]))  # of a sequence
        self.background = rng.choice([0.0, 0.0, 0.3, 0.8])  # of the arrivals
        self.weights = {tenant: rng.choice([1.0, 1.0, 3.0]) for tenant in b"abc"}
        self.num_requests = 0

    def run(self) -> Counter[str]:
        rate = self.rng.choice([0.1, 0.4, 0.7])
        for _ in range(self.num_of_one):
            self.arrive(b"a")
        for _ in range(40):
            while self.rng.random() < rate:
                self.arrive()
            if self.rng.random() < 0.1:
                self.abort()
            self.watched.expire(self.watched.now)
            self.watched.step(self.sample)
        self.watched.drain(self.sample)
        return self.watched.events

    def arrive(self, tenants: bytes = b"abc") -> None:
        rng = self.rng
        name = f"r{self.num_requests}"
        self.num_requests += 1
        for index in range(rng.choice([1, 1, 1, 3])):
            length = rng.randint(1, min(self.capacity, rng.choice([4, 60])))
            pooling = rng.choice([*[None] * 8, *KINDS])
            max_tokens = rng.randint(0, self.capacity - length) if pooling is None else 0
            prompt = [0] * (cut := rng.randint(0, length)) + [rng.randrange(2) for _ in range(length - cut)]
            num_text = rng.choice([length, length, 0, rng.randint(0, length)])
            seq = make_sequence(
                name,
                prompt=prompt,
                index=index,
                stop_token_ids=(STOP,),
                max_tokens=max_tokens,
                min_tokens=rng.choice([0, 0, max_tokens // 2]),
                prompt_logprobs=rng.choice([None] * 9 + [0]) if pooling is None else None,
                pooling=pooling,
                modalities=rng.choice([b"", bytes(num_text) + b"\1" * (length - num_text)]),
                scheduling=self.scheduling(tenants),
            )
            self.watched.add(seq)

    def scheduling(self, tenants: bytes) -> SchedulingParams:
        rng, now = self.rng, self.watched.now
        priority, tenant = rng.randrange(3), rng.choice(tenants)
        deadline = now + rng.uniform(0, 0.2) if rng.random() < 0.1 else None
        start_deadline = now + rng.uniform(0, 0.1) if rng.random() < 0.1 else None
        background = rng.random() < self.background
        weight = self.weights[tenant]
        return SchedulingParams(now, priority, bytes([tenant]), weight, deadline, start_deadline, background)

    def abort(self) -> None:
        if self.watched.live:
            request_id, index = self.rng.choice(list(self.watched.live))
            self.watched.abort(request_id, self.rng.choice([None, index]))

    def sample(self) -> int | None:
        return self.rng.choices([None, STOP, 7], [1, 3, 96])[0]


@pytest.mark.parametrize("seed", range(int(os.environ.get("SIMULATION_SEEDS", "240"))))
def test_promises_hold_under_random_load(seed):
    Simulation(seed).run()


def test_the_simulation_reaches_the_hard_cases():
    events: Counter[str] = Counter()
    for seed in range(60):
        events += Simulation(seed).run()
    reached = {name for name, count in events.items() if count >= 3}
    assert reached == {
        "preempted",
        "a decode waits",
        "chunked",
        "prefix found",
        "passed by a later arrival",
        "passed as often as may be",
        "abort",
        "aborted waiting",
        "aborted running",
        "length",
        "stop",
        "error",
        "pooled over chunks",
        "timeout",
        "stepped over",
        "gave way",
        "beside live ones",
        "waits beside live ones",
    }

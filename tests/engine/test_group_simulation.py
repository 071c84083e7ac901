"""The batcher and the cache with groups of layers, under random load: every block that is read is there, none too many.

The oracle (tests.support.group_oracle) tries out every query that is still to come.
"""

import math
import os
import random
from collections import Counter

import pytest

from engine import retention
from engine.cache_groups import group_layers
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import POLICIES
from engine.protocol import SchedulingParams
from engine.retention import longest
from engine.sequence import SequenceStatus
from engine.step import SampledToken, StepResult
from kernels.attention_pattern import FULL, BlockSparseAttention, LocalAttention
from tests.support.group_oracle import GroupOracle
from tests.support.sequences import make_sequence

STOP = 1


def sparse(size, num_global, num_local, num_random, *layers):
    return [BlockSparseAttention(size, num_global, num_local, num_random, seed=3, layer=layer) for layer in layers]


MIXES = {
    "full": [FULL, FULL],
    "local": [LocalAttention(6)] * 3,
    "two windows": [LocalAttention(1), LocalAttention(9)],
    "full and local": [FULL, LocalAttention(7), LocalAttention(7)],
    "sparse": sparse(8, 1, 2, 0, 0, 1),
    "sparse without a global block": sparse(4, 0, 1, 0, 0),
    "sparse with random blocks": sparse(4, 1, 1, 1, 0, 1),
    "random blocks alone": sparse(4, 0, 0, 2, 0, 1, 2),
    "all kinds": [FULL, LocalAttention(5), *sparse(8, 1, 1, 2, 2, 3), *sparse(4, 0, 2, 0, 4)],
}


class Simulation:
    def __init__(self, mix, seed):
        self.rng = rng = random.Random(seed)
        patterns = tuple(MIXES[mix])
        groups = group_layers(patterns)
        self.block_size = rng.choice([1, 2, 4])
        windows, batch = groups.windows(self.block_size), rng.randint(1, 6)
        budget, num_blocks = batch + rng.choice([0, 3, 40]), rng.choice([5, 12, 40]) * len(windows)
        self.cache = KVCacheManager(
            num_blocks,
            self.block_size,
            windows=windows,
            max_batched_tokens=budget,
            prefix_caching=rng.random() < 0.8,
        )
        self.batcher = DynamicBatcher(
            self.cache,
            batch,
            budget,
            policy=rng.choice(list(POLICIES)),
            prefill_share=rng.choice([0.8, math.inf]),
            background_share=rng.choice([0.1, 2.0]),
        )
        self.capacity = longest(windows, self.block_size, num_blocks, budget, rng.choice([20, 60]))
        self.oracle, self.windows = GroupOracle(patterns, groups, self.block_size), windows
        self.live, self.started, self.now, self.num_requests, self.events = {}, set(), 0.0, 0, Counter()

    def run(self):
        rate = self.rng.choice([0.2, 0.6])
        for _ in range(40):
            while self.rng.random() < rate:
                self.arrive()
            if self.live and self.rng.random() < 0.1:
                self.abort()
            self.step()
        for _ in range(10_000):
            if not self.live:
                break
            self.step()
        assert not self.live, "a sequence never ends"
        self.batcher.check_idle()
        assert self.cache._pool.num_available == self.cache.num_blocks
        return self.events

    def arrive(self):
        rng, name = self.rng, f"r{self.num_requests}"
        self.num_requests += 1
        for index in range(rng.choice([1, 1, 2])):
            length = rng.randint(1, self.capacity)
            prompt = [0] * (cut := rng.randint(0, length)) + [rng.randrange(2) for _ in range(length - cut)]
            seq = make_sequence(
                name,
                prompt=prompt,
                index=index,
                stop_token_ids=(STOP,),
                max_tokens=rng.randint(0, self.capacity - length),
                prompt_logprobs=rng.choice([None] * 9 + [0]),
                scheduling=SchedulingParams(self.now, 0, rng.choice([b"a", b"b"]), background=rng.random() < 0.2),
            )
            self.batcher.add(seq)
            self.live[name, index] = seq
        self.check()

    def abort(self):
        name, index = self.rng.choice(list(self.live))
        self.events["aborted"] += 1
        self.batcher.abort(name, index)
        self.check()

    def step(self):
        waiting = [seq for seq in self.live.values() if seq.status is SequenceStatus.WAITING]
        self.expect_prefixes(waiting)
        plan = self.batcher.schedule(self.now)
        assert bool(plan.scheduled) == bool(self.live)
        of_id = {seq.sequence_id: seq for seq in self.live.values()}
        for item in plan.scheduled:
            seq = of_id[item.sequence_id]
            assert item.start == seq.num_computed_tokens
            assert item.token_ids == seq.token_ids[item.start : item.context_len]
            self.events["prefix found"] += item.start > 0 and seq in waiting
            self.events["chunked"] += item.num_tokens > 1 and item.context_len < seq.num_tokens
            tables = {block for table in item.block_tables for block in table.ids if block >= 0}
            assert tables <= self.held(seq), "a plan has blocks that are released"
            is_first = seq.sequence_id not in self.started or seq in waiting
            self.started.add(seq.sequence_id)
            written = self.oracle.compute(seq, item, is_first=is_first)
            for other in of_id.values():
                assert other is seq or not written & self.held(other), "wrote into another's block"
        sampled = [SampledToken(self.rng.choices([None, STOP, 7], [1, 3, 96])[0])
                   for item in plan.scheduled if item.sample is not None]  # fmt: skip
        logprobs = [[None] * len(item.prompt_logprobs.token_ids) for item in plan.scheduled if item.prompt_logprobs]
        for output in self.batcher.update(plan, StepResult(sampled, logprobs)):
            self.events[str(output.finish_reason)] += 1
            if output.finish_reason == "error":
                self.oracle.broke(self.live[output.request_id, output.index])
        self.check()
        seconds = 0.002 + 0.0005 * plan.num_tokens
        self.now += seconds
        self.batcher.observe(plan, seconds)
        self.events["preempted"] = self.batcher.num_preemptions

    def expect_prefixes(self, waiting):
        """Of what waits, the longest prefix is found."""
        if not self.cache._prefix_caching:
            return
        for seq in waiting[:3]:
            if seq.sampling.prompt_logprobs is None:
                found = self.cache.find_prefix(seq).num_blocks
                assert found == self.oracle.longest_prefix(seq, self.cache, last_of(seq)), "a longer prefix is cached"

    def held(self, seq):
        own = self.cache._sequences.get(seq.sequence_id)
        return set() if own is None else {block for group in own.groups for _, block in group.held()}

    def check(self):
        """Nothing leaks; every running sequence holds what later queries see, and nothing else."""
        self.live = {key: seq for key, seq in self.live.items() if seq.status is not SequenceStatus.FINISHED}
        seqs = list(self.live.values())
        self.cache.check(seqs)
        assert len(set().union(*map(self.held, seqs))) == self.batcher.stats().num_used_blocks
        for seq in seqs:
            if seq.status is not SequenceStatus.RUNNING:
                assert not self.held(seq)
                continue
            for g, group in enumerate(self.cache._sequences[seq.sequence_id].groups):
                held = {number for number, _ in group.held()}
                if self.windows[g] is None:
                    blocks = self.cache.num_blocks_for(seq.num_tokens)
                    assert held in (set(range(blocks)), set(range(blocks - 1)))
                    continue
                kept = self.oracle.kept(g, seq.num_computed_tokens, last_of(seq))
                assert held == kept, "holds too little, or too much"
                self.events["released"] += len(held) < self.cache.num_blocks_for(seq.num_computed_tokens)


def last_of(seq):
    return seq.num_prompt_tokens + max(1, seq.sampling.max_tokens) - 2


NUM_SEEDS = int(os.environ.get("SIMULATION_SEEDS", "45")) // len(MIXES)


@pytest.mark.parametrize("mix", MIXES)
def test_what_queries_see_is_there_and_nothing_else_is_kept(mix, monkeypatch):
    for seed in range(NUM_SEEDS):
        monkeypatch.setattr(retention, "CLAIMED_CHUNK", 2 if seed % 2 else 512)
        Simulation(mix, seed).run()


def test_the_simulation_reaches_the_hard_cases():
    events = Counter()
    for seed in range(12):
        events += Simulation("full and local", seed).run()
    reached = {name for name, count in events.items() if count >= 3}
    assert reached >= {"preempted", "prefix found", "chunked", "aborted", "released", "error", "stop", "length"}

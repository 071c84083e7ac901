"""The batcher under random load: its promises, checked after every step."""

import os
import random
from collections import Counter

import pytest

from engine.dynamic_batcher import MAX_PASSED, DynamicBatcher, SampledToken, StepPlan, StepResult
from engine.kv_cache_manager import KVCacheManager
from engine.policies import AGING, POLICIES
from engine.sequence import Sequence, SequenceStatus
from tests.engine.sequences import make_sequence

STOP = 1


class Simulation:
    """Random arrivals and aborts on a random small engine, with a sampler that draws random tokens."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.block_size = rng.choice([1, 2, 4, 16])
        self.num_blocks = rng.randint(2, 24)
        self.max_batch_size = rng.randint(1, 8)
        self.budget = self.max_batch_size + rng.choice([0, 1, 7, 40])
        self.policy = rng.choice(list(POLICIES))
        self.now = 0.0
        self.batcher = DynamicBatcher(
            KVCacheManager(self.num_blocks, self.block_size, prefix_caching=rng.random() < 0.7),
            self.max_batch_size,
            self.budget,
            policy=self.policy,
            target_itl=rng.choice([None, 0.01]),
        )
        self.seqs: dict[Sequence, int] = {}  # in order of arrival, with its number
        self.live: dict[tuple[str, int], Sequence] = {}
        self.outputs: Counter[Sequence] = Counter()
        self.ended: dict[Sequence, str] = {}
        self.started: dict[Sequence, int] = {}  # sequence -> how many later arrivals started before it
        self.events: Counter[str] = Counter()

    def run(self) -> None:
        rate = self.rng.choice([0.1, 0.3, 0.6])
        for _ in range(40):
            while self.rng.random() < rate:
                self.arrive()
            if self.rng.random() < 0.1:
                self.abort()
            self.step()
        for _ in range(10_000):
            if not self.batcher.has_work:
                break
            self.step()
        self.batcher.check_idle()
        assert self.ended.keys() == self.seqs.keys(), "a sequence was lost"

    def arrive(self) -> None:
        capacity = min(self.num_blocks * self.block_size, 60)
        name = f"r{len(self.seqs)}"
        for index in range(self.rng.choice([1, 1, 1, 3])):
            length = self.rng.randint(1, capacity)
            max_tokens = self.rng.randint(0, capacity - length)
            prompt = [0] * (cut := self.rng.randint(0, length)) + [self.rng.randrange(2) for _ in range(length - cut)]
            seq = make_sequence(name, prompt=prompt, index=index, stop_token_ids=(STOP,), max_tokens=max_tokens)
            seq.priority, seq.tenant = self.rng.randrange(3), self.rng.choice([b"", b"a", b"b"])
            seq.weight = self.rng.choice([1.0, 3.0])
            if self.rng.random() < 0.1:
                seq.deadline = self.now + self.rng.uniform(0, 0.2)
            if self.rng.random() < 0.1:
                seq.start_deadline = self.now + self.rng.uniform(0, 0.1)
            self.batcher.add(seq)
            self.seqs[seq] = len(self.seqs)
            self.live[name, index] = seq

    def abort(self) -> None:
        if self.live:
            seq = self.rng.choice(list(self.live.values()))
            index = self.rng.choice([None, seq.index])
            self.events[f"aborted {seq.status.value}"] += 1
            self.batcher.abort(seq.request_id, index)
            for other in list(self.live.values()):
                if other.request_id == seq.request_id and index in (None, other.index):
                    self.end(other, "abort")
        self.check_blocks()

    def end(self, seq: Sequence, reason: str) -> None:
        del self.live[seq.request_id, seq.index]
        assert (seq.status, seq.block_table) == (SequenceStatus.FINISHED, [])
        self.ended[seq] = reason

    def step(self) -> None:
        for output in self.batcher.expire(self.now):
            seq = self.live[output.request_id, output.index]
            assert seq.deadline is not None or seq.start_deadline is not None
            assert min(deadline for deadline in (seq.deadline, seq.start_deadline) if deadline) <= self.now
            self.end(seq, "timeout")
            self.events["timeout"] += 1
        self.check_blocks()
        decoding = [
            s for s in self.live.values() if s.status is SequenceStatus.RUNNING and s.num_uncomputed_tokens == 1
        ]
        preemptions = self.batcher.num_preemptions
        plan = self.batcher.schedule(self.now)
        self.events["preempted"] += self.batcher.num_preemptions - preemptions
        self.check_plan(plan, decoding)
        seconds = 0.002 + 0.0005 * plan.num_tokens
        self.now += seconds
        self.batcher.observe(plan, seconds)
        self.check_blocks()
        self.note_starts(plan)
        for output in self.batcher.update(plan, self.sample(plan)):
            seq = self.live[output.request_id, output.index]
            self.outputs[seq] += len(output.token_ids)
            if output.finish_reason is not None:
                self.end(seq, output.finish_reason)
                self.events[output.finish_reason] += 1
                if output.finish_reason == "length":
                    assert self.outputs[seq] == seq.sampling.max_tokens
            assert self.outputs[seq] == seq.num_output_tokens
        self.check_blocks()

    def sample(self, plan: StepPlan) -> StepResult:
        tokens = [self.rng.choices([None, STOP, 7], [1, 5, 94])[0] for item in plan.scheduled if item.samples]
        return StepResult([SampledToken(token) for token in tokens], [[] for _ in plan.scheduled])

    def check_plan(self, plan: StepPlan, decoding: list[Sequence]) -> None:
        scheduled = [item.seq for item in plan.scheduled]
        assert bool(scheduled) == self.batcher.has_work, "work waits and nothing advances"
        assert len(set(scheduled)) == len(scheduled)
        assert self.batcher.stats().num_running <= self.max_batch_size
        assert len(scheduled) <= self.max_batch_size
        assert plan.num_tokens <= self.budget
        for item in plan.scheduled:
            assert item.seq.status is SequenceStatus.RUNNING
            assert item.start == item.seq.num_computed_tokens
            assert item.num_tokens >= 1
            assert item.samples == (item.start + item.num_tokens == item.seq.num_tokens)
            assert len(item.seq.block_table) * self.block_size >= item.start + item.num_tokens
            self.events["chunked"] += not item.samples
        tenants = {seq.tenant for seq in scheduled}
        for seq in decoding:
            gives_way = self.policy == "fair" and seq.tenant not in tenants  # to prompts of underserved tenants
            assert seq in scheduled or seq.status is SequenceStatus.WAITING or gives_way, "a decode stalled"
        shares = [item.num_tokens for item in plan.scheduled[: plan.num_decodes]]
        assert shares == [1] * plan.num_decodes, "decodes come first"

    def check_blocks(self) -> None:
        cache = self.batcher.kv_cache
        live = self.live.values()
        cache.check(list(live))
        assert len({block for seq in live for block in seq.block_table}) == cache.num_used_blocks
        assert cache.num_used_blocks == self.batcher.stats().num_used_blocks
        assert cache.num_free_blocks + cache.num_used_blocks == self.num_blocks
        running = [seq for seq in live if seq.status is SequenceStatus.RUNNING]
        waiting = [seq for seq in live if seq.status is SequenceStatus.WAITING]
        assert (len(running), len(waiting)) == (self.batcher.stats().num_running, self.batcher.stats().num_waiting)
        assert not any(seq.block_table for seq in waiting)

    def note_starts(self, plan: StepPlan) -> None:
        for item in plan.scheduled:
            seq = item.seq
            if seq not in self.started:
                passed_by = sum(self.seqs[other] > self.seqs[seq] for other in self.started)
                assert seq.num_passed <= MAX_PASSED, "stepped over too often"
                if self.policy == "length":
                    assert passed_by <= seq.num_prompt_tokens / AGING + seq.num_passed, "passed by too many"
                if self.policy == "fcfs":
                    assert passed_by <= seq.num_passed
                self.started[seq] = passed_by
                self.events["stepped over"] += seq.num_passed > 0
                self.events["prefix found"] += item.start > 0
                self.events["passed by a later arrival"] += passed_by > 0


@pytest.mark.parametrize("seed", range(int(os.environ.get("SIMULATION_SEEDS", "240"))))
def test_promises_hold_under_random_load(seed):
    Simulation(seed).run()


def test_the_simulation_reaches_the_hard_cases():
    events: Counter[str] = Counter()
    for seed in range(20):
        simulation = Simulation(seed)
        simulation.run()
        events += simulation.events
    reached = {name for name, count in events.items() if count >= 5}
    assert reached == {
        "preempted",
        "chunked",
        "prefix found",
        "passed by a later arrival",
        "aborted waiting",
        "aborted running",
        "length",
        "stop",
        "error",
        "timeout",
        "stepped over",
    }

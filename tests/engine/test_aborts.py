"""A thousand aborts in each phase of a sequence's life: nothing is left behind, however often."""

from __future__ import annotations

import pytest

from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.sequence import Sequence, SequenceStatus
from tests.support.sequences import make_sequence, table_of
from tests.support.stepping import add, step

NUM_ABORTS = 1000
WAITING, RUNNING, FINISHED = SequenceStatus.WAITING, SequenceStatus.RUNNING, SequenceStatus.FINISHED


class Life:
    """Brings one fresh request after the other into a phase, on one small batcher with a prefix cache."""

    def __init__(self) -> None:
        self.batcher = DynamicBatcher(KVCacheManager(12, 4), 3, 8)
        self.num_requests = 0

    def request(self, length: int, max_tokens: int = 8, n: int = 1) -> list[Sequence]:
        self.num_requests += 1
        prompt = [self.num_requests + i for i in range(length)]
        name = f"r{self.num_requests}"
        seqs = [make_sequence(name, prompt=prompt, index=index, max_tokens=max_tokens) for index in range(n)]
        add(self.batcher, *seqs)
        return seqs

    def steps(self, count: int) -> None:
        for _ in range(count):
            step(self.batcher, token_id=-1)

    def waiting(self) -> list[Sequence]:
        (seq,) = self.request(20)
        assert (seq.status, seq.first_step_time) == (WAITING, None)
        return [seq]

    def waiting_in_a_full_batch(self) -> list[Sequence]:
        others = [seq for _ in range(3) for seq in self.request(2)]
        self.steps(1)
        (seq,) = self.request(2)
        self.steps(1)
        assert [other.status for other in [*others, seq]] == [RUNNING] * 3 + [WAITING]
        return [seq, *others]

    def _begun(self, num_chunks: int) -> list[Sequence]:
        (seq,) = self.request(20)
        self.steps(num_chunks)
        assert seq.num_computed_tokens == 8 * num_chunks
        return [seq]

    def after_the_first_chunk(self) -> list[Sequence]:
        return self._begun(1)

    def in_the_middle_of_its_prompt(self) -> list[Sequence]:
        return self._begun(2)

    def decoding(self) -> list[Sequence]:
        (seq,) = self.request(6)
        self.steps(4)
        assert seq.num_output_tokens == 4
        return [seq]

    def just_preempted(self) -> list[Sequence]:
        (old,) = self.request(8, max_tokens=30)
        self.steps(1)
        (new,) = self.request(8, max_tokens=30)
        preemptions = self.batcher.num_preemptions
        while self.batcher.num_preemptions == preemptions:
            self.steps(1)
        assert (old.status, new.status, table_of(self.batcher.kv_cache, new)) == (RUNNING, WAITING, [])
        assert new.num_output_tokens > 0
        return [new, old]

    def awaiting_a_prefix(self) -> list[Sequence]:
        first, second = self.request(20, n=2)
        self.steps(1)
        assert (first.status, second.status) == (RUNNING, WAITING)
        assert self.batcher.kv_cache.is_in_flight(second, self.batcher.kv_cache.find_prefix(second).num_blocks)
        return [second, first]

    def awaited_by_another(self) -> list[Sequence]:
        second, first = self.awaiting_a_prefix()
        self.batcher.abort(first.request_id, first.index)
        assert not self.batcher.kv_cache.is_in_flight(second, self.batcher.kv_cache.find_prefix(second).num_blocks)
        self.steps(1)
        assert (second.status, second.num_cached_tokens) == (RUNNING, 8)
        return [second]

    def choices_in_several_states(self) -> list[Sequence]:
        seqs = self.request(9, n=4)
        self.steps(3)
        assert [seq.status for seq in seqs] == [RUNNING] * 3 + [WAITING]
        assert seqs[0].num_output_tokens > 0
        return seqs

    def after_the_end(self) -> list[Sequence]:
        seqs = self.request(5, max_tokens=2, n=2)
        while self.batcher.has_work:
            self.steps(1)
        assert [seq.finish_reason for seq in seqs] == ["length"] * 2
        return seqs


PHASES = [name for name in vars(Life) if name[0] != "_" and name not in ("request", "steps")]


@pytest.mark.parametrize("whole", [True, False], ids=["the request", "one by one"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_thousand_aborts_leave_nothing_behind(phase, whole):
    life = Life()
    for _ in range(NUM_ABORTS):
        for seq in getattr(life, phase)():
            life.batcher.abort(seq.request_id, None if whole else seq.index)
            assert (seq.status, table_of(life.batcher.kv_cache, seq)) == (FINISHED, [])
        assert life.batcher.kv_cache.num_free_blocks == 12
        life.batcher.check_idle()
    assert len(life.batcher._waiting._heap) == 0
    assert life.batcher._live._deadlines == []

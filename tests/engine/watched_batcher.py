"""A DynamicBatcher under watch: every call is followed by all that the batcher promises, as assertions.

The watch keeps its own books (tests.engine.shadow, fair_books, outputs), from what crosses the line only:
arguments, plans, outputs, the calls by which the batcher takes and gives back blocks, and the moment between a step's
two phases. So it knows who is live and in which state, what was delivered, who passed whom, and what lies in every slot
of every block: a step that would read anything but its sequence's own tokens fails.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from engine import dynamic_batcher
from engine.chunk_budget import ChunkBudget
from engine.policies import AGING
from engine.sequence import Sequence, SequenceStatus
from engine.step import SampledToken, StepPlan, StepResult
from tests.engine.fair_books import FairBooks
from tests.engine.outputs import check_output, prompt_logprobs
from tests.engine.probes import Phased, WatchedCache, constants
from tests.engine.shadow import Record, ShadowBlocks

if TYPE_CHECKING:
    from collections.abc import Callable

WAITING, RUNNING, FINISHED = SequenceStatus.WAITING, SequenceStatus.RUNNING, SequenceStatus.FINISHED


class WatchedBatcher:
    """See the module. Use: `add`, `abort`, `expire`, `step` in any order; in the end `drain`."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_batch_size: int,
        budget: int,
        *,
        policy: str = "length",
        target_itl: float | None = None,
        prefill_share: float = 0.8,
        prefix_caching: bool = True,
        max_passed: int = dynamic_batcher.MAX_PASSED,
        look_ahead: int = dynamic_batcher.LOOK_AHEAD,
        burst: int = 100,
        pace: float = 0.012,
    ) -> None:
        """An empty one; the last four stand for the constants, which are too large for a small load."""
        self.block_size, self.num_blocks = block_size, num_blocks
        self.max_batch_size, self.budget = max_batch_size, budget
        self.policy, self.target_itl, self.prefix_caching = policy, target_itl, prefix_caching
        self.max_passed, self.look_ahead, self.burst = max_passed, look_ahead, burst
        self._values = {"MAX_PASSED": max_passed, "LOOK_AHEAD": look_ahead, "BURST": burst, "PACE": pace}
        self.tried: list[Sequence] = []  # in this step, in order: whose prefix was looked up, in order to start it
        self.cache = WatchedCache(num_blocks, block_size, prefix_caching=prefix_caching)
        self.cache.watch = self
        with constants(**self._values):
            self.batcher = Phased(
                self.cache, max_batch_size, budget, policy=policy, target_itl=target_itl, prefill_share=prefill_share
            )
        self.batcher.watch = self
        self._target = ChunkBudget(budget, target_itl or 0.0, 0.0 if target_itl else prefill_share)
        self._pace = ChunkBudget(budget, pace, share=0.5)
        self.now = 0.0
        self.records: list[Record] = []  # in order of arrival
        self.live: dict[tuple[str, int], Record] = {}
        self.running: list[Record] = []  # in order of start
        self.admitted: list[Record] = []  # in this step, in turn or stepping over others
        self.num_starts = 0  # in this step, with those of underserved tenants
        self.num_steps = self.num_preemptions = self.num_prompt_tokens = self.num_cached_tokens = 0
        self.events: Counter[str] = Counter()  # the hard cases that were met
        self.fair = FairBooks(self.running, max_batch_size, max_passed=max_passed, look_ahead=look_ahead, burst=burst)
        self.blocks = ShadowBlocks(num_blocks, block_size)
        self._passed_by: dict[Record, int] = {}  # who has started -> later arrivals that had started before it

    @property
    def waiting(self) -> list[Record]:
        """In the order in which they may start."""
        return sorted((r for r in self.live.values() if r not in self.running), key=lambda record: record.place)

    # What the outside does.

    def add(self, seq: Sequence) -> None:
        deadlines = (math.inf if when is None else when for when in (seq.terms.deadline, seq.terms.start_deadline))
        record = Record(seq, len(self.records), list(seq.token_ids), *deadlines)
        self.blocks.extend(record)
        num_found = len(self.cache.find_prefix(seq)) * self.block_size
        self.batcher.add(seq)
        self.records.append(record)
        self.live[seq.request_id, seq.index] = record
        record.place = (self._expected_place(record, len(seq.token_ids) - num_found), record.number)
        self.check()

    def abort(self, request_id: str, index: int | None = None) -> None:
        doomed = [r for r in self.live.values() if r.seq.request_id == request_id and index in (None, r.seq.index)]
        for record in doomed:
            self.events["aborted running" if record in self.running else "aborted waiting"] += 1
        self.batcher.abort(request_id, index)
        for record in doomed:
            self._end(record, "abort")
        self.check()

    def expire(self, now: float) -> None:
        self.now = now
        due = {
            (r.seq.request_id, r.seq.index)
            for r in self.live.values()
            if r.deadline <= now or (r.start_deadline <= now and r.first_start is None)
        }
        outputs = self.batcher.expire(now)
        assert sorted((output.request_id, output.index) for output in outputs) == sorted(due), "deadlines"
        for output in outputs:
            assert (output.finish_reason, output.token_ids) == ("timeout", [])
            self._end(self.live[output.request_id, output.index], "timeout")
            self.events["timeout"] += 1
        if outputs:
            self.check()

    def step(self, sample: Callable[[], int | None]) -> StepPlan:
        """Schedule, compute and update; `sample` gives each next token, None for logits that were not finite."""
        self.admitted, self.num_starts, self.tried = [], 0, []
        self.fair.begin_step()
        passed_before = {r: r.num_passed for r in self.live.values()}
        with constants(**self._values):
            plan = self.batcher.schedule(self.now)
        assert not self.fair.is_first_phase, "underserved tenants were not looked for"
        self.num_steps += bool(plan.scheduled)
        self._check_plan(plan)
        self._check_nobody_waits_in_vain(plan, passed_before)
        self.check()
        sampling = [self._record(item.seq) for item in plan.scheduled if item.samples]
        for item in plan.scheduled:
            self._compute(self._record(item.seq), item.start, item.num_tokens)
        tokens = [sample() for _ in sampling]
        result = StepResult(
            [SampledToken(token) for token in tokens], [prompt_logprobs(item) for item in plan.scheduled]
        )
        for item in plan.scheduled:
            self._record(item.seq).num_computed += item.num_tokens
            self.fair.serve(self._record(item.seq), item.num_tokens)
        for record, token in zip(sampling, tokens, strict=True):
            if token is None and record.seq.sampling.max_tokens > 0:
                self.blocks.poisoned.update(record.seq.block_table[record.num_cached // self.block_size :])
        outputs = self.batcher.update(plan, result)
        for record, token, output in zip(sampling, tokens, outputs, strict=True):
            reason = check_output(record, token, output)
            self.blocks.extend(record)
            if reason is not None:
                self._end(record, reason)
                self.events[reason] += 1
        self.check()
        seconds = 0.002 + 0.0005 * plan.num_tokens
        self.now += seconds
        self.batcher.observe(plan, seconds)
        for budget in (self._target, self._pace):
            budget.observe(plan.num_decodes, plan.num_tokens - plan.num_decodes, seconds)
        return plan

    def drain(self, sample: Callable[[], int | None]) -> None:
        """Step until nothing is live: every sequence has had its end, and nothing is left behind."""
        for _ in range(10_000):
            if not self.live:
                break
            self.expire(self.now)
            self.step(sample)
        self.batcher.check_idle()
        assert all(record.ended is not None for record in self.records), "a sequence was lost"
        assert self.cache.num_free_blocks == self.num_blocks

    # What the batcher does, as the cache reports it.

    def started(self, record: Record, num_blocks: int) -> None:
        """A waiting sequence took its blocks, the first num_blocks of them from the cache."""
        seq, max_passed = record.seq, self.max_passed
        waiting = self.waiting
        assert record in waiting, "started twice"
        num_cached = num_blocks * self.block_size
        assert num_cached < len(record.contexts), "the last token must be computed"
        if not self.prefix_caching or seq.sampling.prompt_logprobs is not None:
            assert num_cached == 0
        self.blocks.check(record, num_cached)
        assert not self.blocks.poisoned & set(seq.block_table[:num_blocks]), (
            "what a broken sequence wrote was found again"
        )
        assert record.num_passed >= max_passed or not self._awaits(record, num_blocks), "a block is computed twice"
        assert self.cache.num_free_blocks >= len(self.running), "a running sequence cannot grow"
        passed = [other for other in waiting if other.place < record.place]
        assert all(other.num_passed < max_passed for other in passed), "stepped over too often"
        if self.fair.is_first_phase:
            self.fair.check_start(record, passed, self.tried)
            self.events["underserved"] += 1
        else:
            assert not self.fair.urgent, "started in a step that is others'"
            assert len(self.running) < self.max_batch_size
            self.admitted.append(record)
        if len(self.running) < self.max_batch_size:  # else it takes a place that those before it could not have
            for other in passed:
                other.num_passed += 1
        if record.first_start is None:
            self._note_first_start(record, num_cached)
        record.num_computed = record.num_cached = num_cached
        record.num_at_start = len(record.contexts)
        self.fair.start(record, in_turn=not passed)
        self.running.append(record)
        self.num_starts += 1
        self.events["prefix found"] += num_cached > 0
        self.events["stepped over"] += record.num_passed > 0
        self.events["passed as often as may be"] += record.num_passed == max_passed

    def refused(self, record: Record, prefix: list[int]) -> None:
        """There were no blocks for a waiting sequence."""
        held = {block for other in self.running for block in other.seq.block_table}
        num_new = self.cache.num_blocks_for(len(record.contexts)) - len(held & set(prefix))
        assert num_new + len(self.running) > self.cache.num_free_blocks, "it fits and waits"

    def preempted(self, record: Record) -> None:
        """A running sequence is about to give its blocks back."""
        if len(self.running) > self.max_batch_size:  # for another tenant
            self.fair.check_gives_way(record)
            self.events["gave a place to another tenant"] += 1
        else:
            assert not self.fair.is_first_phase
            assert record is self.running[-1], "not the newest was preempted"
            assert self.cache.num_free_blocks == 0, "preempted without need"
            self.events["preempted"] += 1
        self.running.remove(record)
        self.fair.stop(record)
        record.num_computed = 0
        self.num_preemptions += 1

    # What must hold.

    def check(self) -> None:
        """What holds between any two calls."""
        cache, stats = self.cache, self.batcher.stats()
        cache.check([record.seq for record in self.live.values()])
        holders: dict[int, tuple[int, int | None]] = {}  # block -> (its place in a table, context at its end)
        for record in self.running:
            for number, block in enumerate(record.seq.block_table):
                end = (number + 1) * self.block_size
                held = (number, record.contexts[end - 1] if end <= record.num_computed else None)
                assert block not in holders or (holders[block] == held and held[1] is not None), "a block is held twice"
                holders[block] = held
        assert len(holders) == cache.num_used_blocks == stats.num_used_blocks, "blocks leaked"
        assert cache.num_free_blocks + cache.num_used_blocks == self.num_blocks
        assert stats.num_running == len(self.running) <= self.max_batch_size
        assert stats.num_waiting == len(self.live) - len(self.running)
        assert self.batcher.has_work == bool(self.live)
        assert (stats.num_prompt_tokens, stats.num_cached_tokens) == (self.num_prompt_tokens, self.num_cached_tokens)
        assert (stats.num_preemptions, stats.num_steps) == (self.num_preemptions, self.num_steps)
        assert 0 <= stats.packing <= stats.num_steps
        for record in self.live.values():
            self._check_record(record)

    def _check_record(self, record: Record) -> None:
        seq = record.seq
        is_running = record in self.running
        assert seq.status is (RUNNING if is_running else WAITING)
        assert seq.token_ids == record.prompt + record.output, "tokens changed"
        assert seq.num_computed_tokens == record.num_computed
        assert seq.place == record.place, "lost its place"
        assert seq.num_passed == record.num_passed, "passes are miscounted"
        needed = self.cache.num_blocks_for(len(seq.token_ids)) if is_running else 0
        assert needed - is_running <= len(seq.block_table) <= needed, "too few or too many blocks"

    def _check_plan(self, plan: StepPlan) -> None:
        items, scheduled = plan.scheduled, [self._record(item.seq) for item in plan.scheduled]
        assert bool(items) == bool(self.live), "work waits and nothing advances"
        assert len(set(scheduled)) == len(scheduled) <= self.max_batch_size
        assert plan.num_tokens <= self.budget
        left_out = self.fair.left_out()
        begun = [record for record in self.running if record not in self.admitted and record not in left_out]
        decoding = [record for record in begun if record.num_uncomputed == 1]
        begun = sorted((r for r in begun if r not in decoding), key=lambda record: record.place)
        assert scheduled[: plan.num_decodes] == decoding, "a decode stalled, or is not first"
        assert not set(left_out) & set(scheduled), "computed in a step that is others'"
        for record in self.running:
            if record not in left_out:
                assert len(record.seq.block_table) == self.cache.num_blocks_for(len(record.contexts))
        for item, record in zip(items, scheduled, strict=True):
            assert record in self.running
            assert item.start == record.num_computed, "computed tokens are not contiguous"
            assert item.num_tokens >= 1
            assert item.samples == (item.start + item.num_tokens == len(record.contexts))
        chunks, num_tokens = [], len(decoding)
        for number, record in enumerate(begun + self.admitted, 1):
            left = self._most_tokens(plan, max(number, len(begun))) - num_tokens
            assert left > 0 or number <= len(begun), "started without being computed"
            if left > 0:
                chunks.append((record.seq, min(record.num_uncomputed, left)))
                num_tokens += chunks[-1][1]
                self.events["chunked"] += left < record.num_uncomputed
                self.events["paced"] += left < record.num_uncomputed and num_tokens < self.budget
        assert chunks == [(item.seq, item.num_tokens) for item in items[len(decoding) :]], "prompts are cut otherwise"
        assert chunks or not begun, "prompts do not advance"
        self.fair.check_lead(plan, self.budget)
        self.events["a decode waits"] += any(record.num_uncomputed == 1 for record in left_out)

    def _check_nobody_waits_in_vain(self, plan: StepPlan, passed_before: dict[Record, int]) -> None:
        """With places and tokens left, who waits (LOOK_AHEAD + 1 are looked at) does not fit or awaits a prefix."""
        look_ahead, max_passed = self.look_ahead, self.max_passed
        num_sent_back = sum(record.seq.first_step_time is not None for record in self.waiting)
        may_look = self.num_starts + look_ahead + 1
        if self.fair.is_shared:  # before, those that start first: in vain, it may be, and again
            may_look += self.num_starts + look_ahead + num_sent_back
        assert len(self.tried) <= may_look, "more were looked at than may be"
        others = self.fair.left_out()
        num_prompts = sum(r.num_uncomputed > 1 for r in self.running if r not in self.admitted and r not in others)
        is_spent = plan.num_tokens >= self._most_tokens(plan, num_prompts + len(self.admitted) + 1)
        if is_spent or self.fair.urgent or len(self.running) == self.max_batch_size:
            return
        for record in self.waiting[: look_ahead + 1]:
            prefix = self.cache.find_prefix(record.seq)
            if passed_before[record] >= max_passed or not self._awaits(record, len(prefix)):
                self.refused(record, prefix)
            if record.num_passed >= max_passed:
                break

    def _most_tokens(self, plan: StepPlan, num_prompts: int) -> int:
        """What a step may have with so many prompts: less than the limit beside decodes, or where tenants share."""
        num_tokens = self._target.tokens(plan.num_decodes, num_prompts)
        is_paced = self.fair.is_shared and not self.fair.urgent
        return min(num_tokens, self._pace.tokens(plan.num_decodes)) if is_paced else num_tokens

    def _awaits(self, record: Record, num_found: int) -> bool:
        """Whether a running sequence is computing the block after the num_found first ones."""
        end = (num_found + 1) * self.block_size
        if not self.prefix_caching or record.seq.sampling.prompt_logprobs is not None or end >= len(record.contexts):
            return False
        return any(
            other.num_computed < end <= other.num_at_start and other.contexts[end - 1] == record.contexts[end - 1]
            for other in self.running
        )

    # The books.

    def _record(self, seq: Sequence) -> Record:
        record = self.live[seq.request_id, seq.index]
        assert record.seq is seq
        return record

    def _expected_place(self, record: Record, num_to_compute: int) -> float:
        match self.policy:
            case "fcfs":
                return record.number
            case "priority":
                return record.seq.terms.priority
            case "fair":
                return self.fair.arrive(record.seq, num_to_compute)
            case _:
                return num_to_compute + AGING * record.number

    def _note_first_start(self, record: Record, num_cached: int) -> None:
        passed_by = sum(other.number > record.number for other in self._passed_by)
        if self.policy == "length":
            assert passed_by <= len(record.prompt) / AGING + record.num_passed, "passed by too many"
        if self.policy == "fcfs":
            assert passed_by <= record.num_passed
        self.events["passed by a later arrival"] += passed_by > 0
        self._passed_by[record] = passed_by
        record.first_start = self.now
        record.num_cached_first = num_cached
        self.num_prompt_tokens += len(record.prompt)
        self.num_cached_tokens += num_cached

    def _compute(self, record: Record, start: int, num_tokens: int) -> None:
        """What the model does: read all before, write the new; nobody else may hold what is written."""
        self.blocks.check(record, start)
        written = self.blocks.write(record, start, num_tokens)
        others = [other for other in self.running if other is not record]
        assert not any(written & set(other.seq.block_table) for other in others), "wrote into another's block"

    def _end(self, record: Record, reason: str) -> None:
        assert record.ended is None, "ended twice"
        del self.live[record.seq.request_id, record.seq.index]
        if record in self.running:
            self.running.remove(record)
            self.fair.stop(record)
        record.ended = reason
        assert (record.seq.status, record.seq.finish_reason) == (FINISHED, reason)
        assert record.seq.block_table == []
        self.fair.end(record)

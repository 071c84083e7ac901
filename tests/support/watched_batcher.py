"""A DynamicBatcher under watch: every call is followed by what the batcher promises, as assertions.

The watch keeps what it needs to know of each sequence by itself, and reads the batcher only to compare.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import pytest

from engine import dynamic_batcher, fair_share, waiting_queue
from engine.chunk_budget import ChunkBudget
from engine.decode_costs import DecodeCosts
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import AGING
from engine.protocol import SequenceOutput, TokenLogprobs
from engine.sequence import Sequence, SequenceStatus
from engine.step import BlockTable, SampledToken, ScheduledSequence, StepPlan, StepResult
from tests.support.sequences import table_of
from tests.support.shadow import ShadowBlocks

if TYPE_CHECKING:
    from collections.abc import Callable

WAITING, RUNNING, FINISHED = SequenceStatus.WAITING, SequenceStatus.RUNNING, SequenceStatus.FINISHED


@dataclass(eq=False)
class Record:
    """What the watch knows of one sequence."""

    seq: Sequence
    tokens: list[int]  # prompt, then output
    place: tuple[float, int]
    num_computed: int = 0
    num_passed: int = 0
    first_start: float | None = None
    num_cached: int = 0  # when it started for the first time
    num_reported: int = 0  # prompt tokens whose logprobs were asked for
    num_outputs: int = 0

    @property
    def is_background(self) -> bool:
        return self.seq.scheduling.background

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_computed


def _report(token: int) -> TokenLogprobs:
    return TokenLogprobs(-float(token), [], [])


def _num_shares(begun: list[Record]) -> int:
    """Shares of the streams' time that prompts which run bring: those that end with values bring one together."""
    return len([r for r in begun if r.seq.pooling is None]) + bool([r for r in begun if r.seq.pooling is not None])


def _sum_of(item: ScheduledSequence, sampled: int | None) -> bytes | None:
    """What a head adds up whose value of a row is the row's token; None if the sampler's token is."""
    assert item.pool is not None
    rows = item.token_ids if item.pool.pooling == "mean" else item.token_ids[-1:]
    return None if sampled is None else array("d", [sum(rows)]).tobytes()


class WatchedBatcher:
    """Use: `add`, `abort`, `expire`, `step` in any order; in the end `drain`."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_batch_size: int,
        budget: int,
        *,
        policy: str,
        target_itl: float | None,
        prefill_share: float,
        prefix_caching: bool,
        max_passed: int,
        look_ahead: int,
        burst: int = 100,
        background_share: float = 0.1,
    ) -> None:
        """An empty one; some stand for constants, which are too large for a small load."""
        self.num_blocks, self.block_size = num_blocks, block_size
        self.max_batch_size, self.budget = max_batch_size, budget
        self.policy, self.max_passed, self.look_ahead = policy, max_passed, look_ahead
        self._constants = [
            (dynamic_batcher, "MAX_PASSED", max_passed),
            (dynamic_batcher, "LOOK_AHEAD", look_ahead),
            (waiting_queue, "MAX_PASSED", max_passed),
            (fair_share, "NUM_ASKED", look_ahead),
            (fair_share, "BURST", burst),
            (fair_share, "PACE", 0.012),
        ]
        self.cache = KVCacheManager(num_blocks, block_size, prefix_caching=prefix_caching)
        self.batcher = DynamicBatcher(
            self.cache,
            max_batch_size,
            budget,
            policy=policy,
            target_itl=target_itl,
            prefill_share=prefill_share,
            background_share=background_share,
        )
        self._budget = ChunkBudget(budget, target_itl or 0.0, 0.0 if target_itl else prefill_share)
        self.blocks = ShadowBlocks(block_size)
        self.now = 0.0
        self.live: dict[tuple[str, int], Record] = {}
        self.running: list[Record] = []  # in order of start, without those in the background:
        self.beneath: list[Record] = []  # likewise
        self._costs = DecodeCosts(background_share)
        self.started: list[int] = []  # ids in order of their first start
        self.totals: Counter[str] = Counter()  # as the stats must have them
        self.events: Counter[str] = Counter()  # the hard cases that were met

    # What the outside does.

    def add(self, seq: Sequence) -> None:
        self.batcher.add(seq)
        self.live[seq.request_id, seq.index] = Record(seq, list(seq.token_ids), seq.place)
        self.check()

    def abort(self, request_id: str, index: int | None = None) -> None:
        doomed = [r for r in self.live.values() if r.seq.request_id == request_id and index in (None, r.seq.index)]
        self.batcher.abort(request_id, index)
        for record in doomed:
            self.events["aborted running" if record in self.running + self.beneath else "aborted waiting"] += 1
            self._end(record, "abort")
        self.check()

    def expire(self, now: float) -> None:
        self.now = now
        due = {}
        for key, record in self.live.items():
            scheduling = record.seq.scheduling
            limits = [scheduling.deadline, scheduling.start_deadline if record.first_start is None else None]
            if any(limit is not None and limit <= now for limit in limits):
                due[key] = record
        outputs = self.batcher.expire(now)
        assert {(output.request_id, output.index) for output in outputs} == due.keys()
        assert all((output.finish_reason, output.token_ids) == ("timeout", []) for output in outputs)
        for record in due.values():
            self._end(record, "timeout")
        self.check()

    def step(self, sample: Callable[[], int | None]) -> StepPlan:
        """Schedule, compute and update; `sample` gives each next token, None for logits that were not finite."""
        waiting = {record: record.num_passed for record in self.foreground if record not in self.running}
        with pytest.MonkeyPatch.context() as patch:
            for constant in self._constants:
                patch.setattr(*constant)
            plan = self.batcher.schedule(self.now)
        of_id = {record.seq.sequence_id: record for record in self.live.values()}
        records = [of_id[item.sequence_id] for item in plan.scheduled]
        shares = list(zip(records, plan.scheduled, strict=True))
        live = [(record, item) for record, item in shares if not record.is_background]
        live_plan = StepPlan(
            [item for _, item in live], num_decodes=sum(not r.is_background for r in records[: plan.num_decodes])
        )
        new = self._take_in_schedule(plan, list(waiting))
        self._check_plan(live_plan, [record for record, _ in live], new)
        self._check_nobody_waits_in_vain(live_plan, new, waiting)
        started = self._take_in_background()
        self._check_background(plan, live_plan, [r for r in records if r.is_background], started)
        new += started
        self.check()
        self._compute(plan, records, new)
        tokens = [sample() for item in plan.scheduled if item.sample is not None]
        sums = {item.sequence_id: _sum_of(item, sample()) for item in plan.scheduled if item.pool is not None}
        asked = [item.prompt_logprobs.token_ids for item in plan.scheduled if item.prompt_logprobs is not None]
        reports = [[_report(token) for token in token_ids] for token_ids in asked]
        result = StepResult([SampledToken(token) for token in tokens], reports, sums)
        outputs = iter(self.batcher.update(plan, result))
        chosen = iter(tokens)
        for item, record in zip(plan.scheduled, records, strict=True):
            record.num_computed += item.num_tokens
            if item.sample is not None:
                self._check_output(record, next(chosen), next(outputs), item)
            elif item.pool is not None and (sums[item.sequence_id] is None or record.num_left == 0):
                self._check_values(record, next(outputs), item, is_broken=sums[item.sequence_id] is None)
        assert next(outputs, None) is None
        self.check()
        seconds = 0.002 + 0.0005 * plan.num_tokens
        self.now += seconds
        self.batcher.observe(plan, seconds)
        self._budget.observe(plan.num_decodes, plan.num_tokens - plan.num_decodes, seconds)
        if plan.num_decodes == len(plan.scheduled):
            self._costs.observe(plan.num_decodes, seconds)
        return plan

    @property
    def foreground(self) -> list[Record]:
        """The live sequences that are not in the background."""
        return [record for record in self.live.values() if not record.is_background]

    def drain(self, sample: Callable[[], int | None]) -> None:
        """Step until nothing is live: every sequence has had its end, and nothing is left behind."""
        for _ in range(10_000):
            if not self.live:
                break
            self.expire(self.now)
            self.step(sample)
        assert not self.live, "a sequence never ends"
        self.batcher.check_idle()
        assert self.cache.num_free_blocks == self.num_blocks

    # What must hold.

    def check(self) -> None:
        """What holds between any two calls."""
        seqs, stats = [record.seq for record in self.live.values()], self.batcher.stats()
        self.cache.check(seqs)
        assert len({block for seq in seqs for block in table_of(self.cache, seq)}) == stats.num_used_blocks
        running = self.running + self.beneath
        assert stats.num_running == len(running) <= self.max_batch_size
        assert stats.num_waiting == len(self.foreground) - len(self.running)
        assert self.batcher.has_work == bool(self.live)
        assert self.totals == Counter({name: getattr(stats, name) for name in self.totals})
        assert 0 <= stats.packing == self.batcher.packing <= stats.num_steps
        assert stats.num_blocks == self.num_blocks
        for record in self.live.values():
            seq, is_running = record.seq, record in running
            assert seq.status is (RUNNING if is_running else WAITING)
            assert (seq.token_ids, seq.place) == (record.tokens, record.place), "lost its tokens or its place"
            assert seq.num_computed_tokens == record.num_computed
            needed = self.cache.num_blocks_for(len(record.tokens)) if is_running else 0
            assert needed - is_running <= len(table_of(self.cache, seq)) <= needed, "too few or too many blocks"

    def _take_in_schedule(self, plan: StepPlan, waiting: list[Record]) -> list[Record]:
        """Follow who was preempted and who started, in order; the latter, of which some may have been preempted."""
        in_batch = [self.live[seq.request_id, seq.index] for seq in self.batcher._running.values()]
        num_preempted = self.batcher.num_preemptions - self.totals["num_preemptions"]
        if self.policy == "fair":  # any may give way, also for one that starts and is preempted in the same step
            before = iter(self.running)  # one that gives way and starts again stands behind the others
            stayed = list(takewhile(lambda r: r in before and r.seq.num_computed_tokens == r.num_computed, in_batch))
        else:
            stayed = self.running[: len(self.running) - num_preempted]
        assert in_batch[: len(stayed)] == stayed, "not the newest were preempted"
        preempted, new = self.running[len(stayed) :], in_batch[len(stayed) :]
        for record in waiting + preempted if self.policy != "fair" else ():
            before = new[: new.index(record)] if record in new else new
            record.num_passed += sum(other.place > record.place for other in before)
        for record in self.foreground:
            assert record.num_passed <= record.seq.num_passed <= self.max_passed, "passed too often"
            assert self.policy == "fair" or record.seq.num_passed == record.num_passed, "passes are miscounted"
            record.num_passed = record.seq.num_passed
        self.events["stepped over"] += sum(record.num_passed > 0 for record in new)
        self.events["passed as often as may be"] += sum(record.num_passed == self.max_passed for record in new)
        for record in self.running:
            record.num_computed *= record in stayed
        self.events["preempted"] += num_preempted
        self.totals["num_preemptions"] += num_preempted
        self.totals["num_steps"] += bool(plan.scheduled)
        self.running = in_batch
        for record in new:
            self._note_start(record, record.seq.num_computed_tokens)
        return new

    def _note_start(self, record: Record, num_cached: int) -> None:
        seq = record.seq
        assert num_cached % self.block_size == 0
        assert num_cached < len(record.tokens), "the last token must be computed"
        assert num_cached == 0 or not seq.needs_every_position
        record.num_computed = num_cached
        self.events["prefix found"] += num_cached > 0
        if record.first_start is not None:
            return
        passed_by = 0 if record.is_background else sum(number > seq.sequence_id for number in self.started)
        if not record.is_background and self.policy in ("length", "fcfs"):
            by_length = seq.num_prompt_tokens / AGING if self.policy == "length" else 0
            assert passed_by <= by_length + record.num_passed, "passed by too many"
        self.events["passed by a later arrival"] += passed_by > 0
        self.started += [] if record.is_background else [seq.sequence_id]
        record.first_start, record.num_cached = self.now, num_cached
        self.totals["num_prompt_tokens"] += seq.num_prompt_tokens
        self.totals["num_cached_tokens"] += num_cached

    def _check_plan(self, plan: StepPlan, records: list[Record], new: list[Record]) -> None:
        assert bool(records) == bool(self.foreground), "work waits and nothing advances"
        assert len(set(records)) == len(records)
        assert plan.num_tokens == sum(item.num_tokens for item in plan.scheduled) <= self.budget
        begun = [record for record in self.running if record not in new]
        if self.policy == "fair":
            self._check_fair_plan(plan, records, begun)
            return
        decodes = [record for record in begun if record.num_left == 1]
        assert records[: plan.num_decodes] == decodes, "a decode stalled, or is not first"
        prompts = sorted((r for r in begun if r.num_left > 1), key=lambda record: record.place)
        chunks, num_tokens, num_shares = [], plan.num_decodes, _num_shares(prompts)
        for number, record in enumerate(prompts + new, 1):
            is_new = number > len(prompts)
            left = self._budget.tokens(plan.num_decodes, num_shares + is_new) - num_tokens
            num_shares += is_new and record.seq.pooling is None
            assert left > 0 or 1 < number <= len(prompts), "prompts do not advance"
            if left > 0:
                chunks.append((record, min(record.num_left, left)))
                num_tokens += chunks[-1][1]
                self.events["chunked"] += left < record.num_left
        expected = [(record, item.num_tokens) for record, item in zip(records, plan.scheduled, strict=True)]
        assert chunks == expected[plan.num_decodes :], "prompts are cut otherwise, or not in the policy's order"

    def _check_fair_plan(self, plan: StepPlan, records: list[Record], begun: list[Record]) -> None:
        """Steps may be paced, and an urgent one leaves tenants out: with all their sequences."""
        tenants = {record.seq.scheduling.tenant for record in records}
        left_out = [record for record in begun if record.seq.scheduling.tenant not in tenants]
        stalled = [record for record in begun if record.num_left == 1 and record not in left_out + records]
        assert not stalled, "a decode stalled"
        assert all(record.num_left == 1 for record in records[: plan.num_decodes])
        assert not left_out or any(record.num_left > 1 for record in records), "a step is urgent without a prompt"
        self.events["a decode waits"] += any(record.num_left == 1 for record in left_out)

    def _take_in_background(self) -> list[Record]:
        """Follow who gave way, and who started in the background; the latter."""
        before, now = (
            self.beneath,
            [self.live[s.request_id, s.index] for s in self.batcher._background.running.values()],
        )
        pairs = zip(before, now, strict=False)
        stayed = [r for r, other in takewhile(lambda pair: pair[0] is pair[1], pairs)
                  if r.seq.num_computed_tokens == r.num_computed]  # fmt: skip
        gone, new = before[len(stayed) :], now[len(stayed) :]
        assert not set(new) & set(stayed)
        for record in gone:
            record.num_computed = 0
        self.beneath = now
        for record in new:
            self._note_start(record, record.seq.num_computed_tokens)
        self.events["gave way"] += bool(gone) and bool(self.foreground)
        return new

    def _check_background(self, plan: StepPlan, live: StepPlan, records: list[Record], new: list[Record]) -> None:
        """Nobody in the background delays, displaces or slows a live sequence; alone, all of them advance."""
        assert records == [record for record in self.beneath if record in records], "the oldest do not come first"
        assert plan.scheduled[: live.num_decodes] == live.scheduled[: live.num_decodes], "live decodes are not first"
        waiting = [r for r in self.live.values() if r.is_background and r not in self.beneath]
        starts = [record.seq.sequence_id for record in new]
        assert starts == sorted(starts)
        assert not new or all(record.seq.sequence_id > starts[-1] for record in waiting), "not the first were started"
        lives_wait = len(self.foreground) > len(self.running)
        assert not (new and lives_wait), "one starts while a live sequence waits"
        number = plan.num_decodes - live.num_decodes
        in_step, others = (
            records[:number],
            new + records[number:],
        )  # one that gave way may start at once, one token short
        decodes = [record for record in self.beneath if record.num_left == 1 and record not in others]
        assert in_step == decodes[: len(in_step)], "not the oldest decode"
        if not live.scheduled:
            assert in_step == decodes, "a decode stalled without a reason"
            assert bool(records) == any(r.is_background for r in self.live.values()), "nothing advances"
            return
        if live.num_decodes < len(live.scheduled):
            assert not records, "a live prompt is delayed"
            return
        most, seconds = self._costs.beside(live.num_decodes), self._costs.seconds_left(live.num_decodes, len(in_step))
        assert len(in_step) == min(most, len(decodes)), "decodes beside live ones are too many or too few"
        num_tokens = plan.num_tokens - plan.num_decodes
        assert num_tokens <= self._budget.tokens_in(seconds, plan.num_decodes), "a live step becomes too long"
        self.events["beside live ones"] += bool(in_step)
        self.events["waits beside live ones"] += len(in_step) < len(decodes)

    def _check_nobody_waits_in_vain(self, plan: StepPlan, new: list[Record], passed_before: dict[Record, int]) -> None:
        """With room left, the first LOOK_AHEAD + 1 that wait do not fit, or wait for a prefix in flight."""
        begun = [r for r in self.running if r not in new and r.num_left > 1]
        num_shares = _num_shares(begun) + sum(record.seq.pooling is None for record in new)
        most = self._budget.tokens(plan.num_decodes, num_shares + 1)
        if self.policy == "fair" or len(self.running) == self.max_batch_size or plan.num_tokens >= most:
            return
        waiting = sorted((r for r in self.foreground if r not in self.running), key=lambda record: record.place)
        for record in waiting[: self.look_ahead + 1]:
            prefix = self.cache.find_prefix(record.seq)
            if passed_before.get(record, 0) >= self.max_passed or not self.cache.is_in_flight(
                record.seq, prefix.num_blocks
            ):
                num_new = self.cache.num_blocks_for(len(record.tokens)) - sum(
                    b.ref_count > 0 for b in prefix.blocks[0].values()
                )
                assert num_new + len(self.running) > self.cache.num_free_blocks, "it fits and waits"
            if record.num_passed >= self.max_passed:
                break

    def _compute(self, plan: StepPlan, records: list[Record], new: list[Record]) -> None:
        tables = {record: set(table_of(self.cache, record.seq)) for record in self.running + self.beneath}
        for item, record in zip(plan.scheduled, records, strict=True):
            seq, stop = record.seq, item.context_len
            assert item.start == record.num_computed, "computed tokens are not contiguous"
            assert item.token_ids == record.tokens[item.start : stop] != []
            assert item.block_tables == [BlockTable(table_of(self.cache, seq)[: self.cache.num_blocks_for(stop)])]
            is_last = stop == len(record.tokens)
            assert (item.sample is not None) == (is_last and seq.pooling is None)
            pools = seq.pooling is not None and (is_last or seq.pooling.pooling == "mean")
            assert item.pool == (seq.pooling if pools else None)
            if item.sample is not None:
                assert (item.sample.params, item.sample.seed) == (seq.sampling, seq.seed)
                assert item.sample.num_output_tokens == len(record.tokens) - seq.num_prompt_tokens
            if item.prompt_logprobs is not None:
                first = item.start + item.prompt_logprobs.first + 1
                assert first == record.num_reported + 1, "prompt logprobs are not contiguous"
                following = record.tokens[first : min(stop + 1, seq.num_prompt_tokens)]
                assert item.prompt_logprobs.token_ids == following != []
                record.num_reported += len(following)
            written = self.blocks.compute(seq, item, is_first=record in new)
            others = (tables[other] for other in tables if other is not record)
            assert not any(written & table for table in others), "wrote into another's block"

    def _check_output(self, record: Record, token: int | None, output: SequenceOutput, item: ScheduledSequence) -> None:
        seq, params, is_first = record.seq, record.seq.sampling, record.num_outputs == 0
        tokens = [] if token is None or params.max_tokens == 0 else [token]
        record.tokens += tokens
        num_output = len(record.tokens) - seq.num_prompt_tokens
        if token is None:
            reason = "error"
            self.blocks.poisoned.update(item.block_tables[0].ids[record.num_cached // self.block_size :])
        elif params.max_tokens == 0:
            reason = "length"
        elif token in seq.stop_token_ids and num_output >= params.min_tokens:
            reason = "stop"
        else:
            reason = "length" if num_output == params.max_tokens else None
        wants_reports = is_first and params.prompt_logprobs is not None
        reports = [_report(token) for token in record.tokens[1 : seq.num_prompt_tokens]] if wants_reports else None
        assert output == SequenceOutput(
            request_id=seq.request_id,
            index=seq.index,
            token_ids=tokens,
            finish_reason=reason,
            stop_token_id=token if reason == "stop" else None,
            prompt_logprobs=reports,
            queue_time=record.first_start - seq.scheduling.arrival_time if is_first else None,
            num_cached_tokens=record.num_cached if is_first else 0,
        )
        record.num_outputs += 1
        if reason is not None:
            self._end(record, reason)

    def _check_values(
        self, record: Record, output: SequenceOutput, item: ScheduledSequence, *, is_broken: bool
    ) -> None:
        seq = record.seq
        assert seq.pooling is not None
        is_mean = seq.pooling.pooling == "mean"
        value = sum(record.tokens) / len(record.tokens) if is_mean else record.tokens[-1]
        assert output == SequenceOutput(
            request_id=seq.request_id,
            index=seq.index,
            token_ids=[],
            finish_reason="error" if is_broken else "stop",
            queue_time=record.first_start - seq.scheduling.arrival_time,
            num_cached_tokens=record.num_cached,
            pooled=None if is_broken else array("f", [value]).tobytes(),
        )
        if is_broken:
            self.blocks.poisoned.update(item.block_tables[0].ids[record.num_cached // self.block_size :])
        self.events["pooled over chunks"] += is_mean and item.start > 0
        self._end(record, output.finish_reason)

    def _end(self, record: Record, reason: str) -> None:
        del self.live[record.seq.request_id, record.seq.index]
        for running in (self.running, self.beneath):
            if record in running:
                running.remove(record)
        self.events[reason] += 1
        assert (record.seq.status, record.seq.finish_reason) == (FINISHED, reason)
        assert table_of(self.cache, record.seq) == []

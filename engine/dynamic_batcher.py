"""The DynamicBatcher: which sequences the next step computes, and how many tokens of each.

Owns every Sequence from `add` to its end. Blocks are KVCacheManager's; who goes next is the policy's (engine.policies).
Holds no tensors, no text and no clock: callers pass the time in.

Costs are in docs/scheduling.md: nothing grows with what waits.
"""

from __future__ import annotations

from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from engine.background import Background
from engine.chunk_budget import ChunkBudget
from engine.live_sequences import LiveSequences
from engine.policies import POLICIES
from engine.protocol import EngineStats, FinishReason, SequenceOutput
from engine.sequence import Sequence, SequenceStatus
from engine.snapshot import BatcherState, describe_running, describe_waiting
from engine.step import ScheduledSequence, StepPlan, StepResult
from engine.waiting_queue import MAX_PASSED, WaitingQueue

if TYPE_CHECKING:
    from engine.grammars import Matcher
    from engine.kv_cache_manager import KVCacheManager

LOOK_AHEAD = 8  # waiting sequences that one step passes over at most
PREFILL_SHARE = 0.8  # of the decodes' time, for each prompt beside them
BACKGROUND_SHARE = 0.1  # of the live decodes' time, for background sequences beside them
_MAX_SEARCHED = 4096  # live sequences among which a snapshot looks for those that compile


class DynamicBatcher:
    """Packs live sequences into steps. Use: `add`, then `schedule` and `update` by turns; `abort` between them.

    A step holds at most max_batch_size sequences and max_batched_tokens tokens, without padding. Decoding sequences get
    a token each, so that no stream stalls behind a prompt. Running prompts, then waiting ones, get what is left; beside
    decodes that is no more than keeps the step short (engine.chunk_budget). A prompt larger than that is cut.
    Background sequences get what all these leave (engine.background); they are not meant by "running" and "waiting".
    """

    def __init__(
        self,
        kv_cache: KVCacheManager,
        max_batch_size: int,
        max_batched_tokens: int,
        *,
        policy: str = "length",
        target_itl: float | None = None,
        prefill_share: float = PREFILL_SHARE,
        background_share: float = BACKGROUND_SHARE,
    ) -> None:
        """Start empty.

        `policy` is a name in engine.policies.POLICIES. `target_itl` is how many seconds a step with decoding sequences
        should last at most. Without it, `prefill_share` is the time that a step gives to each prompt, as a multiple of
        what its decodes take: one prompt hardly disturbs the streams, many get on. `background_share` is the time that
        background sequences may take of a step with live ones (engine.background), likewise.
        """
        assert max_batched_tokens >= max_batch_size, "every running sequence must be able to advance in each step"
        self.kv_cache = kv_cache
        self.max_batch_size = max_batch_size
        self.num_arrivals = self.num_steps = self.num_preemptions = 0
        self.num_prompt_tokens = self.num_cached_tokens = 0  # of all sequences that have started
        self.packing = 0.0
        self._step_seconds, self._step_tokens = 0.0, 0
        share = {"share": prefill_share} if target_itl is None else {"target": target_itl}
        self._chunk_budget = ChunkBudget(max_batched_tokens, **share)
        self._policy = POLICIES[policy](max_batch_size, self._chunk_budget)
        self._waiting = WaitingQueue()
        self._running: dict[int, Sequence] = {}  # sequence id -> sequence, oldest first
        self._live = LiveSequences()
        self._background = Background(kv_cache, max_batch_size, self._chunk_budget, background_share)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is live."""
        return bool(self._live)

    @property
    def can_step(self) -> bool:
        """Whether a live sequence can be scheduled: all can but those whose grammar is being compiled."""
        return bool(self._running) or len(self._waiting) > 0 or self._background.can_step

    @property
    def _can_admit(self) -> bool:
        """Whether something waits and the batch has a seat for it."""
        return len(self._waiting) > 0 and len(self._running) < self.max_batch_size

    def stats(self) -> EngineStats:
        """The load at this moment; of background sequences, those that wait are no load."""
        return EngineStats(
            num_running=len(self._running) + len(self._background.running),
            num_waiting=len(self._waiting),
            num_used_blocks=self.kv_cache.num_used_blocks,
            num_blocks=self.kv_cache.num_blocks,
            num_preemptions=self.num_preemptions,
            num_prompt_tokens=self.num_prompt_tokens + self._background.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens + self._background.num_cached_tokens,
            num_steps=self.num_steps,
            packing=self.packing,
            step_seconds=self._step_seconds,
            step_tokens=self._step_tokens,
        )

    def add(self, seq: Sequence) -> None:
        """Take a sequence in, WAITING, or COMPILING until `ready`.

        Its prompt and max_tokens must fit the pool; the caller refuses those that don't.
        """
        num_tokens = seq.num_prompt_tokens + seq.sampling.max_tokens
        assert self.kv_cache.can_ever_hold(num_tokens), "can never fit"
        seq.sequence_id = self.num_arrivals
        self.num_arrivals += 1
        if not seq.scheduling.background:
            seq.num_charged = seq.num_tokens - self.kv_cache.find_prefix(seq).num_blocks * self.kv_cache.block_size
            seq.place = self._policy.place(seq, seq.num_charged, seq.sequence_id), seq.sequence_id
        else:
            seq.place = 0.0, seq.sequence_id
        self._live.add(seq)
        if seq.status is SequenceStatus.WAITING:
            self._queue_of(seq).push(seq)

    def ready(self, seq: Sequence, matcher: Matcher | None) -> list[SequenceOutput]:
        """A sequence's grammar is compiled: it waits for its first step now. Without a matcher it ends with an error.

        One that has ended meanwhile is left alone.
        """
        if seq.status is not SequenceStatus.COMPILING:
            return []
        if matcher is None:
            self._finish(seq, "error")
            return [SequenceOutput(seq.request_id, seq.index, [], "error")]
        seq.matcher, seq.status = matcher, SequenceStatus.WAITING
        self._queue_of(seq).push(seq)
        return []

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request's sequences (or one of them) now; those already ended, and unknown ids, are ignored."""
        for seq in self._live.of(request_id, index):
            self._finish(seq, "abort")

    def expire(self, now: float) -> list[SequenceOutput]:
        """End what is past its deadline, or past the one for its start and still waiting for that."""
        outputs = []
        for seq in self._live.due(now):
            self._finish(seq, "timeout")
            outputs.append(SequenceOutput(seq.request_id, seq.index, [], "timeout"))
        return outputs

    def schedule(self, now: float) -> StepPlan:
        """Choose the next step and allocate its blocks. Empty only if nothing can step."""
        urgent = self._admit_urgent(now)  # sequences that have this step to themselves: none but under fair shares
        most_tokens = self._chunk_budget.tokens if urgent else self._policy.max_tokens
        decodes, prompts = self._decode(urgent or list(self._running.values()))
        plan = StepPlan(decodes, num_decodes=len(decodes))  # to whose `scheduled` all that follows is added
        num_shares = _num_shares(prompts)
        left = most_tokens(plan.num_decodes, num_shares) - plan.num_decodes if prompts else 0
        left = self._continue_prompts(plan, prompts, left)
        if self._can_admit and not urgent:
            left = self._admit(plan, num_shares, now)
        if self._background.can_step:
            live_wait = len(self._waiting) > 0
            plan = self._background.fill(plan, len(self._running), live_wait=live_wait, now=now)
        assert plan.scheduled or not self.can_step, "work waits and nothing can advance"
        if plan.scheduled:
            self.num_steps += 1
            self.packing += plan.num_tokens / (plan.num_tokens + max(0, left)) if self._can_admit else 1.0
        return plan

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceOutput]:
        """Take in what the step brought: new tokens, and the ends of sequences, whose blocks are released."""
        live, background, cache = self._running, self._background.running, self.kv_cache
        self._policy.computed((live[i.sequence_id], i.num_tokens) for i in plan.scheduled if i.sequence_id in live)
        outputs = []
        sampled, prompt_logprobs = iter(result.sampled), iter(result.prompt_logprobs)
        for item in plan.scheduled:
            seq = live[item.sequence_id] if item.sequence_id in live else background[item.sequence_id]
            seq.num_computed_tokens += len(item.token_ids)
            if item.prompt_logprobs is not None:
                seq.prompt_logprobs += next(prompt_logprobs)
            output = None
            if item.sample is not None:
                output = seq.advance(next(sampled))
            elif item.pool is not None:
                output = seq.pool(result.pooled[item.sequence_id])
            reason = None if output is None else output.finish_reason
            if reason is None or reason != "error":  # a broken sequence's blocks must not be found again
                cache.computed(seq, item.start)
            if output is not None:
                outputs.append(output)
            if reason is not None:
                self._finish(seq, reason)
        return outputs

    def fail(self, plan: StepPlan) -> list[SequenceOutput]:
        """End the sequences of a step that could not be computed; nothing that they computed is found again."""
        seqs = [self._scheduled(item) for item in plan.scheduled]
        for seq in seqs:
            self._finish(seq, "error")
        return [SequenceOutput(seq.request_id, seq.index, [], "error") for seq in seqs]

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """Learn from how long a step took."""
        num_prompt_tokens = plan.num_prompt_tokens
        self._step_seconds += seconds
        self._step_tokens += plan.num_decodes + num_prompt_tokens
        self._chunk_budget.observe(plan.num_decodes, num_prompt_tokens, seconds)
        self._background.observe(plan, seconds)

    def snapshot(self, now: float, limit: int) -> BatcherState:
        """Tell who runs and waits, at most `limit` of each, for whoever looks into the engine."""
        cache, background = self.kv_cache, self._background
        num_running = len(self._running)
        is_full = num_running >= self.max_batch_size
        blocker = f"all {self.max_batch_size} seats of the batch are taken" if is_full else ""
        compiling = [seq for seq in self._live.some(_MAX_SEARCHED) if seq.status is SequenceStatus.COMPILING]
        waiting = [*self._waiting.first(limit), *compiling][:limit]
        beneath = blocker or ("requests wait, which go first" if len(self._waiting) else "")
        running = describe_running(islice(background.running.values(), limit), cache, now)
        num_spare = num_running + len(background.running)
        return BatcherState(
            policy=type(self._policy).__name__,
            max_batch_size=self.max_batch_size,
            num_running=num_running,
            num_waiting=len(self._waiting),
            num_compiling=len(compiling),
            num_background_running=len(background.running),
            num_background_waiting=len(background.waiting),
            running=describe_running(islice(self._running.values(), limit), cache, now),
            waiting=describe_waiting(waiting, cache, now, num_running, blocker),
            background=[
                *running,
                *describe_waiting(background.waiting.first(limit - len(running)), cache, now, num_spare, beneath),
            ],
            num_blocks=cache.num_blocks,
            num_free_blocks=cache.num_free_blocks,
            block_size=cache.block_size,
            num_steps=self.num_steps,
            num_preemptions=self.num_preemptions,
            costs=self._chunk_budget.costs,
        )

    def check_idle(self) -> None:
        """Assert that nothing is left behind: what must hold when the last sequence has ended."""
        assert not self._live and not self._running and not len(self._waiting)  # noqa: PT018
        assert not self._background.can_step
        self.kv_cache.check([])

    def _decode(self, seqs: list[Sequence]) -> tuple[list[ScheduledSequence], list[Sequence]]:
        """One token of each sequence that decodes; beside these, the sequences that still compute their prompt.

        Oldest first, so that the newest is preempted before it is its turn.
        """
        step, prompts, running = list[ScheduledSequence](), list[Sequence](), SequenceStatus.RUNNING
        for seq in seqs:
            if len(seq.token_ids) - seq.num_computed_tokens > 1:  # a call less for each sequence
                prompts.append(seq)
                continue
            while seq.status is running:
                if (block_tables := self.kv_cache.grow(seq)) is not None:
                    step.append(seq.next_chunk(1, block_tables))
                    break
                if not self._background.give_way():
                    self._preempt(next(reversed(self._running.values())))
        return step, [seq for seq in prompts if seq.status is running]

    def _continue_prompts(self, plan: StepPlan, prompts: list[Sequence], left: int) -> int:
        """The prompts that run, in the policy's order; what they leave of the tokens that are left."""
        for seq in sorted(prompts, key=attrgetter("place")):
            if left > 0:
                left -= self._add_chunk(plan, seq, left)
        return left

    def _admit(self, plan: StepPlan, num_shares: int, now: float) -> int:
        """Start waiting sequences while the batch and the step have room; the tokens left for one more."""
        passed: list[Sequence] = []
        num_tokens = plan.num_tokens
        while (left := self._policy.max_tokens(plan.num_decodes, num_shares + 1) - num_tokens) > 0:
            if len(self._running) >= self.max_batch_size or len(passed) > LOOK_AHEAD:
                break
            if (seq := self._waiting.next(passed)) is None:
                break
            if self._start(seq, passed, now):
                num_tokens += self._add_chunk(plan, seq, left)
                num_shares += seq.pooling is None
            else:
                passed.append(seq)
        self._waiting.push(*passed)
        return left

    def _admit_urgent(self, now: float) -> list[Sequence]:
        """Start waiting sequences that go first by the policy, in others' seats if the batch is full.

        Returns:
            The running sequences to which the policy gives the whole step; none if all may run.
        """
        passed: list[Sequence] = []
        num_left = self._policy.num_first  # not counting those that were preempted, which stand before all others
        while num_left > 0 and (seq := self._waiting.next(passed)) is not None:
            if self._policy.goes_first(seq) and self._start(seq, passed, now):
                if len(self._running) > self.max_batch_size:
                    self._preempt(self._policy.gives_way(self._running.values()))
            else:
                passed.append(seq)
                num_left -= seq.first_step_time is None
        self._waiting.push(*passed)
        return self._policy.urgent(self._running.values())

    def _add_chunk(self, plan: StepPlan, seq: Sequence, most: int) -> int:
        """Let a step compute the next tokens of a sequence, at most so many; how many they are."""
        num_tokens = min(seq.num_uncomputed_tokens, most, self.kv_cache.most_tokens(seq))
        block_tables = self.kv_cache.extend(seq, seq.num_computed_tokens + num_tokens)
        plan.scheduled.append(seq.next_chunk(num_tokens, block_tables))
        return num_tokens

    def _start(self, seq: Sequence, passed: list[Sequence], now: float) -> bool:
        """Run a waiting sequence before those passed, if its blocks are free and each running one can still grow.

        It waits, too, while a running sequence computes its next block, which it will find in the cache. Neither lets
        more than MAX_PASSED others start before it.
        """
        prefix = self.kv_cache.find_prefix(seq)
        if seq.num_passed < MAX_PASSED and self.kv_cache.is_in_flight(seq, prefix.num_blocks):
            return False
        while not self.kv_cache.start(seq, prefix, num_growing=len(self._running)):
            if not self._background.give_way():
                return False
        if seq.start(prefix.num_blocks * self.kv_cache.block_size, now):
            self.num_prompt_tokens += seq.num_prompt_tokens
            self.num_cached_tokens += seq.num_cached_tokens
        self._running[seq.sequence_id] = seq
        self._policy.started(seq, in_turn=not passed)
        if len(self._running) <= self.max_batch_size:  # else it takes a seat that they could not have had
            for other in passed:
                other.num_passed += 1
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Send a running sequence back to its place among the waiting; its tokens will be computed anew."""
        del self._running[seq.sequence_id]
        self._policy.stopped(seq)
        self.kv_cache.release(seq)
        seq.send_back()
        self._waiting.push(seq)
        self.num_preemptions += 1

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state: the one way there, which releases its blocks and its matcher."""
        was_waiting = seq.status is SequenceStatus.WAITING
        seq.status, seq.finish_reason, seq.matcher = SequenceStatus.FINISHED, reason, None
        if self._running.pop(seq.sequence_id, None) is not None:
            self._policy.stopped(seq)
        elif was_waiting:
            self._queue_of(seq).discard()
        self.kv_cache.release(seq, forget=reason == "error")
        if seq.scheduling.background:
            self._background.remove(seq)
        else:
            self._policy.ended(seq)
        self._live.remove(seq)

    def _queue_of(self, seq: Sequence) -> WaitingQueue:
        return self._background.waiting if seq.scheduling.background else self._waiting

    def _scheduled(self, item: ScheduledSequence) -> Sequence:
        return self._running.get(item.sequence_id) or self._background.running[item.sequence_id]


def _num_shares(prompts: list[Sequence]) -> int:
    """How many shares of the streams' time prompts may take; those that end with values bring one together.

    Nobody watches them grow, and they come by the thousand: a share for each would hold up streams for a second.
    """
    return sum(seq.pooling is None for seq in prompts) + any(seq.pooling is not None for seq in prompts)

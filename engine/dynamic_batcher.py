"""The DynamicBatcher: which sequences the next step computes, and how many tokens of each.

Owns every Sequence from `add` to its end and, through KVCacheManager, their blocks. Holds no tensors, no text and no
clock (callers pass the time in).

A step is packed without padding, under three limits: `max_batch_size` sequences, `max_batched_tokens` tokens, and the
free blocks. Decoding sequences come first, one token each, so running streams never stall behind a prompt. Beside them,
prompts get no more tokens than keep the step short (engine.chunk_budget): as short as the target for the inter-token
latency or, where none is set, for each prompt a share of the decodes' own time. Prompts already begun come first, then
waiting ones, both in the order of the policy (engine.policies; shortest first by default); each that starts brings its
share. A prompt larger than what is left is cut, and the rest follows in later steps. What the prefix cache holds of a
prompt is not computed again, and does not count as length.

A sequence starts only when blocks for all of its tokens are free, and one more for each running sequence. One that does
not fit is stepped over, and so is one whose next block a running sequence is just computing (it will find it in the
cache); but after MAX_PASSED others have started before it in this way, nobody else does.

Under fair shares, a tenant with few places in the batch goes first, in the place of one with many if need be, and while
it has a prompt to compute, steps are its own: others' streams wait, within bounds (engine.policies.BURST). As nobody's
turn comes before the step under way has ended, all other steps are kept short.

When a running sequence needs a block and none is free, the newest running one is preempted: its blocks go, its tokens
stay, and it waits for its turn to be computed anew, at its old place.

Costs: `add` and `abort` O(log waiting); `schedule` and `update` O(running), with at most LOOK_AHEAD waiting ones looked
at; nothing grows with what waits.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from engine.chunk_budget import ChunkBudget
from engine.policies import POLICIES
from engine.protocol import EngineStats, FinishReason, SequenceOutput
from engine.sequence import Sequence, SequenceStatus
from engine.step import SampledToken, ScheduledSequence, StepPlan, StepResult
from engine.waiting_queue import WaitingQueue

if TYPE_CHECKING:
    from engine.kv_cache_manager import KVCacheManager

LOOK_AHEAD = 8  # waiting sequences that one step steps over at most
MAX_PASSED = 32  # sequences that may start before one out of turn
PREFILL_SHARE = 0.8  # of the decodes' time, for prompts beside them
PACE = 0.04  # seconds that a step should last at most where tenants share


class DynamicBatcher:
    """Packs live sequences into steps. Use: `add`, then `schedule` and `update` by turns; `abort` between them."""

    def __init__(
        self,
        kv_cache: KVCacheManager,
        max_batch_size: int,
        max_batched_tokens: int,
        *,
        policy: str = "length",
        target_itl: float | None = None,
        prefill_share: float = PREFILL_SHARE,
    ) -> None:
        """Start empty.

        Args:
            kv_cache: where blocks come from.
            max_batch_size: sequences that run at once.
            max_batched_tokens: tokens of a step; at least max_batch_size.
            policy: a name in engine.policies.POLICIES.
            target_itl: seconds that a step with decoding sequences should last at most.
            prefill_share: without a target, time that a step gives to each prompt, as a multiple of what its decodes
                take: one prompt hardly disturbs the streams, many get on.
        """
        assert max_batched_tokens >= max_batch_size, "every running sequence must be able to advance in each step"
        self.kv_cache = kv_cache
        self.max_batch_size = max_batch_size
        self.max_batched_tokens = max_batched_tokens
        self.num_preemptions = 0
        self.num_prompt_tokens = self.num_cached_tokens = 0  # of all sequences that have started
        self.num_steps, self.packing = 0, 0.0
        self._policy = POLICIES[policy]()
        share = {"share": prefill_share} if target_itl is None else {"target": target_itl}
        self._chunk_budget = ChunkBudget(max_batched_tokens, **share)
        self._pace = ChunkBudget(max_batched_tokens, target=PACE, share=0.5)
        self._num_arrivals = 0
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # oldest first
        self._live: dict[str, dict[int, Sequence]] = {}  # request id -> index -> sequence
        self._deadlines: list[tuple[float, int, Sequence]] = []  # a heap of (when, arrival number, whose)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is live."""
        return bool(self._live)

    def stats(self) -> EngineStats:
        """The load at this moment."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_used_blocks=self.kv_cache.num_used_blocks,
            num_blocks=self.kv_cache.num_blocks,
            num_preemptions=self.num_preemptions,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_steps=self.num_steps,
            packing=self.packing,
        )

    def add(self, seq: Sequence) -> None:
        """Take a sequence in. Its prompt and max_tokens must fit the pool; the caller refuses those that don't."""
        num_tokens = seq.num_prompt_tokens + seq.sampling.max_tokens
        assert self.kv_cache.num_blocks_for(num_tokens) <= self.kv_cache.num_blocks, "can never fit"
        num_to_compute = seq.num_tokens - len(self.kv_cache.find_prefix(seq)) * self.kv_cache.block_size
        seq.num_charged = num_to_compute
        seq.place = (self._policy.place(seq, num_to_compute, self._num_arrivals), self._num_arrivals)
        self._num_arrivals += 1
        self._live.setdefault(seq.request_id, {})[seq.index] = seq
        self._waiting.push(seq)
        for deadline in (seq.terms.deadline, seq.terms.start_deadline):
            if deadline is not None:
                heapq.heappush(self._deadlines, (deadline, seq.place[1], seq))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request's sequences (or one of them) now; those already ended, and unknown ids, are ignored."""
        live = self._live.get(request_id, {})
        for i in list(live) if index is None else [index]:
            if i in live:
                self._finish(live[i], "abort")

    def expire(self, now: float) -> list[SequenceOutput]:
        """End what is past its deadline, or past the one for its start and still waiting for that."""
        outputs = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, seq = heapq.heappop(self._deadlines)
            is_due = deadline == seq.terms.deadline or seq.first_step_time is None
            if is_due and seq.status is not SequenceStatus.FINISHED:
                self._finish(seq, "timeout")
                outputs.append(SequenceOutput(seq.request_id, seq.index, [], "timeout"))
        return outputs

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """Learn from how long a step took."""
        num_prompt_tokens = plan.num_tokens - plan.num_decodes
        for budget in (self._chunk_budget, self._pace):
            budget.observe(plan.num_decodes, num_prompt_tokens, seconds)

    def schedule(self, now: float) -> StepPlan:
        """Choose the next step and allocate its blocks. Empty only if nothing is live."""
        if self._policy.paces_steps:
            self._start_underserved(now)
        urgent = self._urgent() if self._policy.paces_steps else []
        decoding: list[Sequence] = []
        prompts: list[Sequence] = []
        for seq in urgent or self._running:
            (decoding if seq.num_uncomputed_tokens == 1 else prompts).append(seq)
        running = SequenceStatus.RUNNING
        for seq in decoding:  # oldest first, so the newest is preempted before its turn comes
            if seq.status is running:
                self._grow_or_preempt(seq)
        scheduled = [
            ScheduledSequence(seq, seq.num_computed_tokens, 1, samples=True)
            for seq in decoding
            if seq.status is running
        ]
        num_decodes = len(scheduled)
        prompts = sorted((seq for seq in prompts if seq.status is running), key=_place)
        left = self._limit(num_decodes, len(prompts), paced=not urgent) - num_decodes if prompts else 0
        for seq in prompts:
            if left > 0:
                scheduled.append(ScheduledSequence.next_of(seq, left))
                left -= scheduled[-1].num_tokens
        if len(self._waiting) and not urgent:
            left = self._admit(scheduled, num_decodes, len(prompts), now)
        assert scheduled or not self.has_work, "work waits and nothing can advance"
        if self._policy.paces_steps:
            self._policy.served((item.seq, item.num_tokens) for item in scheduled)
        if scheduled:
            self.num_steps += 1
            is_short = len(self._waiting) > 0 and len(self._running) < self.max_batch_size and left > 0
            num_tokens = sum(item.num_tokens for item in scheduled)
            self.packing += num_tokens / (num_tokens + left) if is_short else 1.0
        return StepPlan(tuple(scheduled), num_decodes)

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceOutput]:
        """Take in what the step brought: new tokens, and the ends of sequences, whose blocks are released."""
        outputs = []
        sampled = iter(result.sampled)
        for item, prompt_logprobs in zip(plan.scheduled, result.prompt_logprobs, strict=True):
            seq = item.seq
            assert seq.status is SequenceStatus.RUNNING
            seq.num_computed_tokens += item.num_tokens
            seq.prompt_logprobs += prompt_logprobs
            choice = next(sampled) if item.samples else None
            if choice is None or choice.token_id is not None:  # a broken sequence's blocks must not be found again
                self.kv_cache.remember(seq, item.start)
            if choice is not None:
                outputs.append(self._advance(seq, choice))
        return outputs

    def check_idle(self) -> None:
        """Assert that nothing is left behind: what must hold when the last sequence has ended."""
        assert not self._live
        assert not self._running
        assert len(self._waiting) == 0
        self.kv_cache.check([])

    def _advance(self, seq: Sequence, sampled: SampledToken) -> SequenceOutput:
        assert seq.first_step_time is not None
        is_first = seq.num_output_tokens == 0
        reason: FinishReason | None = None
        token_ids = []
        if seq.sampling.max_tokens == 0:
            reason = "length"
        elif sampled.token_id is None:
            reason = "error"
        else:
            token_ids = [sampled.token_id]
            seq.token_ids += token_ids
            if sampled.token_id in seq.stop_token_ids and seq.num_output_tokens >= seq.sampling.min_tokens:
                reason = "stop"
            elif seq.num_output_tokens == seq.sampling.max_tokens:
                reason = "length"
        if reason is not None:
            self._finish(seq, reason)
        return SequenceOutput(
            request_id=seq.request_id,
            index=seq.index,
            token_ids=token_ids,
            finish_reason=reason,
            stop_token_id=token_ids[0] if reason == "stop" else None,
            logprobs=[sampled.logprobs] if token_ids and sampled.logprobs else None,
            prompt_logprobs=seq.prompt_logprobs if is_first and seq.sampling.prompt_logprobs is not None else None,
            queue_time=seq.first_step_time - seq.terms.arrival_time if is_first else None,
            num_cached_tokens=seq.num_cached_tokens if is_first else 0,
        )

    def _admit(self, scheduled: list[ScheduledSequence], num_decodes: int, num_prompts: int, now: float) -> int:
        """Start waiting sequences while there is room in the batch and the step; tokens left for one more of them."""
        stepped_over: list[Sequence] = []
        num_tokens = sum(item.num_tokens for item in scheduled)
        left = self._limit(num_decodes, num_prompts + 1) - num_tokens
        while left > 0 and len(self._running) < self.max_batch_size and len(stepped_over) <= LOOK_AHEAD:
            seq = self._waiting.first()
            if seq is None:
                break
            if self._start(seq, now, in_turn=not stepped_over):
                self._waiting.pop()
                for other in stepped_over:
                    other.num_passed += 1
                scheduled.append(ScheduledSequence.next_of(seq, left))
                num_tokens += scheduled[-1].num_tokens
                num_prompts += 1
                left = self._limit(num_decodes, num_prompts + 1) - num_tokens
                if any(other.num_passed == MAX_PASSED for other in stepped_over):
                    break
            elif seq.num_passed < MAX_PASSED:
                stepped_over.append(self._waiting.pop())
            else:
                break
        for seq in stepped_over:
            self._waiting.push(seq)
        return left

    def _start(self, seq: Sequence, now: float, *, in_turn: bool) -> bool:
        """Run a waiting sequence, if its tokens' blocks are free and each running one can still grow."""
        prefix = self.kv_cache.find_prefix(seq)
        if seq.num_passed < MAX_PASSED and self.kv_cache.awaits(seq, prefix):
            return False
        if not self.kv_cache.start(seq, prefix, num_spare=len(self._running)):
            return False
        seq.status = SequenceStatus.RUNNING
        seq.num_computed_tokens = len(prefix) * self.kv_cache.block_size
        if seq.first_step_time is None:
            seq.first_step_time = now
            seq.num_cached_tokens = seq.num_computed_tokens
            self.num_prompt_tokens += seq.num_prompt_tokens
            self.num_cached_tokens += seq.num_cached_tokens
        self._policy.started(seq, in_turn=in_turn)
        self._running.append(seq)
        return True

    def _limit(self, num_decodes: int, num_prompts: int, *, paced: bool = True) -> int:
        """Tokens of a step at most, if it computes so many prompts beside its decodes."""
        num_tokens = self._chunk_budget.tokens(num_decodes, num_prompts)
        if paced and self._policy.paces_steps:
            num_tokens = min(num_tokens, self._pace.tokens(num_decodes))
        return num_tokens

    def _urgent(self) -> list[Sequence]:
        """The running sequences of underserved tenants that have a prompt to compute."""
        tenants = {
            seq.terms.tenant
            for seq in self._running
            if seq.num_uncomputed_tokens > 1 and self._policy.is_underserved(seq, self.max_batch_size)
        }
        return [seq for seq in self._running if seq.terms.tenant in tenants] if tenants else []

    def _start_underserved(self, now: float) -> None:
        """Start sequences of tenants with few places, in others' places if need be.

        LOOK_AHEAD waiting ones are looked at, beside those that were sent back: they stand before all others, and are
        no more than what ran. Those that it passes are stepped over, unless they could not have had that place.
        """
        passed: list[Sequence] = []
        num_new = 0
        while len(self._waiting) and num_new < LOOK_AHEAD:
            seq = self._waiting.pop()
            if self._policy.is_underserved(seq, self.max_batch_size) and self._start(seq, now, in_turn=not passed):
                if len(self._running) > self.max_batch_size:
                    self._preempt(self._policy.gives_way(self._running))
                else:
                    for other in passed:
                        other.num_passed += 1
            else:
                passed.append(seq)
                num_new += seq.first_step_time is None
            if any(other.num_passed >= MAX_PASSED for other in passed):
                break
        for seq in passed:
            self._waiting.push(seq)

    def _grow_or_preempt(self, seq: Sequence) -> None:
        """Get `seq` the block for its next token, from the newest running sequences if none is free."""
        while not self.kv_cache.grow(seq):
            newest = self._running[-1]
            self._preempt(newest)
            if newest is seq:
                return

    def _preempt(self, seq: Sequence) -> None:
        """Send a running sequence back to its place among the waiting; its tokens will be computed anew."""
        self._running.remove(seq)
        self._policy.stopped(seq)
        self.kv_cache.release(seq)
        seq.num_computed_tokens = 0
        seq.status = SequenceStatus.WAITING
        self._waiting.push(seq)
        self.num_preemptions += 1

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state: the one release."""
        was_running = seq.status is SequenceStatus.RUNNING
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason = reason
        if was_running:
            self._running.remove(seq)
            self._policy.stopped(seq)
        else:
            self._waiting.discard()
        self._policy.ended(seq)
        self.kv_cache.release(seq, forget=reason == "error")
        of_request = self._live[seq.request_id]
        del of_request[seq.index]
        if not of_request:
            del self._live[seq.request_id]


def _place(seq: Sequence) -> tuple[float, int]:
    return seq.place

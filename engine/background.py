"""Sequences that are computed with what all others leave: the lines of batches, beneath live requests.

Owns which of them wait and run. DynamicBatcher plans the live ones as if there were no others, takes seats and blocks
from here whenever it lacks some, and has `fill` add to each step what does not delay the live ones noticeably
(docs/scheduling.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.decode_costs import DecodeCosts
from engine.sequence import SequenceStatus
from engine.step import StepPlan
from engine.waiting_queue import WaitingQueue

if TYPE_CHECKING:
    from engine.chunk_budget import ChunkBudget
    from engine.kv_cache_manager import KVCacheManager
    from engine.sequence import Sequence

PACE = 0.05  # seconds that a step without live sequences should last, as one may arrive: half of it is what it waits
PACE_SHARE = 1.0  # of the decodes' time, for prompts, even if PACE is then missed


class Background:
    """First come, first served. A sequence that lost its seat comes before those that never had one."""

    def __init__(self, kv_cache: KVCacheManager, max_batch_size: int, budget: ChunkBudget, share: float) -> None:
        """`share` is how much longer the steps of live sequences may take, as a part of what they take alone."""
        self.running: dict[int, Sequence] = {}  # sequence id -> sequence, oldest first
        self.waiting = WaitingQueue()
        self._kv_cache, self._max_batch_size, self._budget = kv_cache, max_batch_size, budget
        self._costs = DecodeCosts(share)
        self.num_prompt_tokens = self.num_cached_tokens = 0  # of all sequences that have started

    @property
    def can_step(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.running) or len(self.waiting) > 0

    def give_way(self) -> bool:
        """Send the newest back to wait, so that its seat and its blocks are free; False if none runs."""
        if not self.running:
            return False
        _, seq = self.running.popitem()
        self._kv_cache.release(seq)
        seq.send_back()
        self.waiting.push(seq)
        return True

    def fill(self, plan: StepPlan, num_live: int, *, live_wait: bool, now: float) -> StepPlan:
        """Add to a step what it leaves; `num_live` live sequences run, and nobody starts while others wait.

        The plan that is returned has the same list of scheduled sequences, and counts the decodes added to it.
        Seats that live sequences have taken since are given up first.
        """
        while num_live + len(self.running) > self._max_batch_size:
            self.give_way()
        if plan.num_decodes < len(plan.scheduled):  # it computes live prompts: these are to be done soon
            return plan
        num_beside = plan.num_decodes
        prompts = self._decode(plan, self._costs.beside(num_beside) if num_beside else self._max_batch_size)
        plan = StepPlan(plan.scheduled, num_decodes=len(plan.scheduled))
        left = self._tokens_for_prompts(num_beside, plan.num_decodes)
        for seq in prompts:
            left -= self._add_chunk(plan, seq, left)
        while left > 0 and not live_wait and num_live + len(self.running) < self._max_batch_size:
            if (waiting := self.waiting.next([])) is None:
                break
            if not self._start(waiting, num_live, now):
                self.waiting.push(waiting)
                break
            left -= self._add_chunk(plan, waiting, left)
        return plan

    def remove(self, seq: Sequence) -> None:
        """A sequence has ended that ran here, if it did."""
        self.running.pop(seq.sequence_id, None)

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """Learn from how long a step took."""
        if plan.num_decodes == len(plan.scheduled):
            self._costs.observe(plan.num_decodes, seconds)

    def _decode(self, plan: StepPlan, most: int) -> list[Sequence]:
        """One token of each of the oldest that decode; those that still compute their prompt."""
        prompts: list[Sequence] = []
        for seq in list(self.running.values()):
            if seq.num_uncomputed_tokens > 1:
                prompts.append(seq)
                continue
            while most > 0 and seq.status is SequenceStatus.RUNNING:
                if (block_tables := self._kv_cache.grow(seq)) is not None:
                    plan.scheduled.append(seq.next_chunk(1, block_tables))
                    most -= 1
                    break
                self.give_way()
        return [seq for seq in prompts if seq.status is SequenceStatus.RUNNING]

    def _tokens_for_prompts(self, num_beside: int, num_decodes: int) -> int:
        """Tokens of prompts in a step of so many decodes, of which so many are live."""
        if not num_beside:
            return self._budget.within(PACE, PACE_SHARE, max(1, num_decodes)) - num_decodes
        return self._budget.tokens_in(self._costs.seconds_left(num_beside, num_decodes - num_beside), num_decodes)

    def _add_chunk(self, plan: StepPlan, seq: Sequence, most: int) -> int:
        """Let a step compute the next tokens of a sequence, at most so many; how many they are."""
        num_tokens = min(seq.num_uncomputed_tokens, most, self._kv_cache.most_tokens(seq))
        if num_tokens > 0:
            block_tables = self._kv_cache.extend(seq, seq.num_computed_tokens + num_tokens)
            plan.scheduled.append(seq.next_chunk(num_tokens, block_tables))
        return max(0, num_tokens)

    def _start(self, seq: Sequence, num_live: int, now: float) -> bool:
        """Run a waiting sequence, if its blocks are free and each running one can still grow.

        It waits, too, while another computes its next block, which it will find in the cache.
        """
        cache, prefix = self._kv_cache, self._kv_cache.find_prefix(seq)
        if cache.is_in_flight(seq, prefix.num_blocks) or not cache.start(seq, prefix, num_live + len(self.running)):
            return False
        if seq.start(prefix.num_blocks * cache.block_size, now):
            self.num_prompt_tokens += seq.num_prompt_tokens
            self.num_cached_tokens += seq.num_cached_tokens
        self.running[seq.sequence_id] = seq
        return True

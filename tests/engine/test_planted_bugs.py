"""Planted bugs: each must make the watched batcher fail, which proves that its assertions bite.

A bug is one patch to the parts that the batcher is made of; its name says what goes wrong. It is planted for a bounded
number of the simulation's seeds, of which one at least must fail. (Unpatched, all of them pass: see the simulation.)
"""

from __future__ import annotations

import hashlib
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from engine import dynamic_batcher
from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.policies import FairShare
from engine.protocol import SequenceOutput
from engine.sequence import SequenceStatus
from engine.step import ScheduledSequence
from engine.waiting_queue import WaitingQueue
from tests.engine import test_batcher_state_machine
from tests.engine.probes import constants
from tests.engine.test_batcher_simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUM_SEEDS = 60  # that a bug has at most to be found in

PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def plant(bug_name: str, owner: Any, name: str, wrong: Callable[..., Any]) -> None:
    """Plant `wrong` in place of an attribute, which it gets as its first argument."""
    right = getattr(owner, name)

    def patched(*args: Any, **options: Any) -> Any:
        return wrong(right, *args, **options)

    PLANTED[bug_name] = lambda monkeypatch: monkeypatch.setattr(owner, name, patched)


def bug(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Plant what is decorated; its name names the bug."""

    def register(wrong: Callable[..., Any]) -> Callable[..., Any]:
        plant(wrong.__name__, owner, name, wrong)
        return wrong

    return register


def bug_of_constants(bug_name: str, owner: Any, name: str, **values: float) -> None:
    """Plant other values of the batcher's constants in one method."""

    def wrong(right: Callable[..., Any], *args: Any) -> Any:
        with constants(**values):
            return right(*args)

    plant(bug_name, owner, name, wrong)


@contextmanager
def ignored(owner: Any, name: str) -> Iterator[None]:
    """Calls of a method with a sequence do nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda seq: None)
        yield


# Blocks.


@bug(KVCacheManager, "release")
def release_forgets_a_block(release, cache, seq, **options):
    del seq.block_table[1:2]
    release(cache, seq, **options)


@bug(KVCacheManager, "release")
def release_gives_back_twice(release, cache, seq, **options):
    table = list(seq.block_table)
    release(cache, seq, **options)
    seq.block_table += table
    release(cache, seq, **options)


@bug(KVCacheManager, "grow")
def grow_comes_one_token_early(grow, cache, seq):
    is_early = len(seq.block_table) == cache.num_blocks_for(seq.num_tokens) < cache.num_blocks_for(seq.num_tokens + 1)
    if is_early and cache.num_free_blocks > 0:
        seq.block_table.append(cache._take())
    return grow(cache, seq)


@bug(KVCacheManager, "grow")
def grow_comes_one_token_late(grow, cache, seq):
    return grow(cache, seq) if len(seq.block_table) < cache.num_blocks_for(seq.num_tokens - 1) else True


@bug(KVCacheManager, "start")
def start_leaves_no_block_to_grow(start, cache, seq, prefix, num_spare):
    return start(cache, seq, prefix, 0)


@bug(KVCacheManager, "start")
def start_does_not_hold_what_it_found(start, cache, seq, prefix, num_spare):
    started = start(cache, seq, prefix, num_spare)
    for block in prefix if started else []:
        cache._num_holders[block] -= 1
    return started


@bug(KVCacheManager, "_take")
def a_cached_block_is_taken_without_being_forgotten(take, cache):
    if cache._blank:
        return take(cache)
    block, _ = cache._unheld.popitem(last=False)
    cache._num_holders[block] = 1
    return block


@bug(KVCacheManager, "_take")
def a_held_block_is_evicted(take, cache):
    held = [block for block in cache._cached.values() if cache._num_holders[block] == 1]
    return held[0] if held else take(cache)


@bug(KVCacheManager, "_hash")
def hashes_leave_out_the_tenant(compute, cache, seq, number):
    terms, seq.terms = seq.terms, msgspec.structs.replace(seq.terms, tenant=b"")
    try:
        return compute(cache, seq, number)
    finally:
        seq.terms = terms


@bug(KVCacheManager, "_hash")
def hashes_leave_out_the_blocks_before(_, cache, seq, number):
    tokens = array("q", seq.token_ids[number * cache.block_size : (number + 1) * cache.block_size])
    return hashlib.sha256(seq.terms.tenant + tokens.tobytes()).digest()


@bug(KVCacheManager, "remember")
def a_block_is_remembered_before_it_is_full(remember, cache, seq, num_before):
    computed = seq.num_computed_tokens
    rounded_up = cache.num_blocks_for(computed) * cache.block_size
    seq.num_computed_tokens = rounded_up if rounded_up <= seq.num_tokens else computed
    remember(cache, seq, num_before)
    seq.num_computed_tokens = computed


@bug(KVCacheManager, "_num_reusable")
def the_last_token_is_taken_from_the_cache(_, cache, seq):
    return seq.num_tokens // cache.block_size if cache._prefix_caching else 0


@bug(KVCacheManager, "_num_reusable")
def prompts_that_want_their_logprobs_take_cached_blocks(_, cache, seq):
    return (seq.num_tokens - 1) // cache.block_size if cache._prefix_caching else 0


@bug(KVCacheManager, "release")
def what_a_broken_sequence_computed_is_kept(release, cache, seq, *, forget=False):
    release(cache, seq)


@bug(KVCacheManager, "_withdraw")
def an_announcement_is_never_withdrawn(_, cache, seq, stop):
    return


@bug(KVCacheManager, "awaits")
def nobody_awaits_a_prefix(_, cache, seq, prefix):
    return False


@bug(KVCacheManager, "awaits")
def all_await_whatever_is_computed(_, cache, seq, prefix):
    return bool(cache._announced)


# Steps.


@bug(ScheduledSequence, "next_of")
def a_chunk_is_one_token_over_the_budget(chunk, seq, budget):
    return chunk(seq, budget + 1)


@bug(ScheduledSequence, "next_of")
def a_chunk_is_one_token_short(chunk, seq, budget):
    return chunk(seq, max(1, budget - 1))


@bug(ScheduledSequence, "next_of")
def a_chunk_skips_a_token(chunk, seq, budget):
    item = chunk(seq, budget)
    if item.num_tokens < 2:
        return item
    return ScheduledSequence(seq, item.start + 1, item.num_tokens - 1, item.samples)


@bug(ScheduledSequence, "next_of")
def every_chunk_samples(chunk, seq, budget):
    item = chunk(seq, budget)
    return ScheduledSequence(seq, item.start, item.num_tokens, True)


@bug(dynamic_batcher.ChunkBudget, "tokens")
def the_budget_of_a_step_is_one_too_many(tokens, budget, num_decodes, *num_prompts):
    return tokens(budget, num_decodes, *num_prompts) + 1


@bug(dynamic_batcher.ChunkBudget, "tokens")
def decodes_come_on_top_of_the_budget(tokens, budget, num_decodes, *num_prompts):
    return tokens(budget, num_decodes, *num_prompts) + num_decodes


@bug(DynamicBatcher, "_admit")
def the_batch_holds_one_too_many(admit, batcher, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batcher, "max_batch_size", batcher.max_batch_size + 1)
        return admit(batcher, *args)


@bug(DynamicBatcher, "_admit")
def passes_are_never_counted(admit, batcher, *args):
    counts = {seq: seq.num_passed for live in batcher._live.values() for seq in live.values()}
    budget = admit(batcher, *args)
    for seq, count in counts.items():
        seq.num_passed = count
    return budget


@bug(DynamicBatcher, "_admit")
def what_was_stepped_over_is_dropped(admit, batcher, *args):
    with ignored(batcher._waiting, "push"):
        return admit(batcher, *args)


bug_of_constants("only_the_first_that_waits_is_looked_at", DynamicBatcher, "_admit", LOOK_AHEAD=0)
bug_of_constants("all_that_wait_are_looked_at", DynamicBatcher, "_admit", LOOK_AHEAD=1000)
bug_of_constants("what_was_stepped_over_is_passed_without_end", DynamicBatcher, "_admit", MAX_PASSED=1000)


# Preemption.


@bug(DynamicBatcher, "_preempt")
def a_preempted_sequence_is_not_queued_again(_, batcher, seq):
    batcher._running.remove(seq)
    batcher.kv_cache.release(seq)
    seq.num_computed_tokens, seq.status = 0, SequenceStatus.WAITING


@bug(DynamicBatcher, "_preempt")
def a_preempted_sequence_loses_its_place(preempt, batcher, seq):
    seq.place = (seq.place[0] + 1000, seq.place[1])
    preempt(batcher, seq)


@bug(DynamicBatcher, "_preempt")
def a_preempted_sequence_loses_its_output(preempt, batcher, seq):
    del seq.token_ids[seq.num_prompt_tokens :]
    preempt(batcher, seq)


@bug(DynamicBatcher, "_preempt")
def a_preempted_sequence_goes_on_where_it_was(preempt, batcher, seq):
    start = batcher._start
    computed = seq.num_computed_tokens

    def start_and_skip(other, now, *, in_turn):
        started = start(other, now, in_turn=in_turn)
        if started and other is seq:
            seq.num_computed_tokens = max(computed, seq.num_computed_tokens)
        return started

    batcher._start = start_and_skip
    preempt(batcher, seq)


@bug(DynamicBatcher, "_grow_or_preempt")
def the_oldest_is_preempted(_, batcher, seq):
    while seq.status is SequenceStatus.RUNNING and not batcher.kv_cache.grow(seq):
        batcher._preempt(batcher._running[0])


@bug(DynamicBatcher, "_start")
def what_is_computed_anew_counts_as_a_new_prompt(start, batcher, seq, now, *, in_turn):
    started = start(batcher, seq, now, in_turn=in_turn)
    if started and seq.first_step_time != now:
        batcher.num_prompt_tokens += seq.num_prompt_tokens
    return started


# Ends.


@bug(DynamicBatcher, "_finish")
def one_way_to_the_end_releases_nothing(finish, batcher, seq, reason):
    table = seq.block_table
    if reason == "stop":
        seq.block_table = []
    finish(batcher, seq, reason)
    seq.block_table = table


@bug(DynamicBatcher, "_finish")
def a_stop_leaves_the_blocks_with_the_cache(finish, batcher, seq, reason):
    if reason == "stop":
        seq.block_table = []
    finish(batcher, seq, reason)


@bug(DynamicBatcher, "_finish")
def an_end_stays_among_the_live(finish, batcher, seq, reason):
    finish(batcher, seq, reason)
    if reason == "timeout":
        batcher._live.setdefault(seq.request_id, {})[seq.index] = seq


@bug(WaitingQueue, "discard")
def the_queue_counts_who_ended_twice(discard, queue):
    discard(queue)
    queue._num_dead += 1


@bug(WaitingQueue, "discard")
def the_queue_does_not_count_who_ended(_, queue):
    return


@bug(DynamicBatcher, "expire")
def a_deadline_for_the_start_is_ignored(expire, batcher, now):
    batcher._deadlines = [entry for entry in batcher._deadlines if entry[0] != entry[2].terms.start_deadline]
    return expire(batcher, now)


@bug(DynamicBatcher, "expire")
def a_deadline_for_the_start_ends_what_runs(expire, batcher, now):
    for _, _, seq in batcher._deadlines:
        if seq.terms.start_deadline is not None:
            soonest = min(seq.terms.start_deadline, seq.terms.deadline or seq.terms.start_deadline)
            seq.terms = msgspec.structs.replace(seq.terms, deadline=soonest)
    return expire(batcher, now)


@bug(DynamicBatcher, "abort")
def an_abort_of_one_ends_the_request(abort, batcher, request_id, index=None):
    abort(batcher, request_id)


@bug(DynamicBatcher, "abort")
def an_abort_spares_what_waits(abort, batcher, request_id, index=None):
    for seq in list(batcher._live.get(request_id, {}).values()):
        if seq.status is SequenceStatus.RUNNING:
            abort(batcher, request_id, seq.index)


@bug(DynamicBatcher, "_advance")
def a_stop_token_before_min_tokens_ends(advance, batcher, seq, sampled):
    if sampled.token_id in seq.stop_token_ids and seq.sampling.max_tokens:
        seq.token_ids.append(sampled.token_id)
        batcher._finish(seq, "stop")
        return SequenceOutput(seq.request_id, seq.index, [sampled.token_id], "stop", sampled.token_id, queue_time=0.0)
    return advance(batcher, seq, sampled)


@bug(DynamicBatcher, "_advance")
def a_token_is_delivered_twice(advance, batcher, seq, sampled):
    output = advance(batcher, seq, sampled)
    output.token_ids.extend(output.token_ids)
    return output


# Fair shares.


@bug(FairShare, "ended")
def fair_shares_refund_what_was_generated(_, policy, seq):
    if seq.terms.tenant in policy._ends:
        policy._ends[seq.terms.tenant] -= seq.sampling.max_tokens / seq.terms.weight


@bug(FairShare, "ended")
def fair_shares_refund_nothing(_, policy, seq):
    return


@bug(FairShare, "started")
def the_clock_stands(started, policy, seq, *, in_turn):
    started(policy, seq, in_turn=False)


@bug(FairShare, "started")
def the_clock_moves_with_starts_out_of_turn(started, policy, seq, *, in_turn):
    started(policy, seq, in_turn=True)


@bug(FairShare, "started")
def a_tenant_that_was_away_saves_up(started, policy, seq, *, in_turn):
    served = policy._served.get(seq.terms.tenant, 0.0)
    was_away = seq.terms.tenant not in policy._running
    started(policy, seq, in_turn=in_turn)
    if was_away:
        policy._served[seq.terms.tenant] = served


@bug(FairShare, "served")
def what_is_computed_is_not_counted(_, policy, shares):
    return


@bug(FairShare, "served")
def what_is_computed_counts_alike_for_all_weights(_, policy, shares):
    for seq, num_tokens in shares:
        policy._served[seq.terms.tenant] += num_tokens


@bug(FairShare, "served")
def prompts_count_as_one_token(served, policy, shares):
    served(policy, ((seq, 1) for seq, _ in shares))


@bug(DynamicBatcher, "_preempt")
def who_is_preempted_keeps_its_place_in_the_count(preempt, batcher, seq):
    with ignored(batcher._policy, "stopped"):
        preempt(batcher, seq)


@bug(DynamicBatcher, "_finish")
def who_ends_keeps_its_place_in_the_count(finish, batcher, seq, reason):
    with ignored(batcher._policy, "stopped"):
        finish(batcher, seq, reason)


@bug(FairShare, "is_underserved")
def all_are_underserved(_, policy, seq, max_batch_size):
    return True


@bug(FairShare, "is_underserved")
def nobody_is_underserved(_, policy, seq, max_batch_size):
    return False


@bug(FairShare, "is_underserved")
def who_has_its_share_is_underserved(is_underserved, policy, seq, max_batch_size):
    return is_underserved(policy, seq, 2 * max_batch_size)


bug_of_constants("the_underserved_go_first_without_end", FairShare, "is_underserved", BURST=1 << 40)


@bug(FairShare, "gives_way")
def the_newest_of_all_gives_way(_, policy, running):
    return running[-1]


@bug(FairShare, "gives_way")
def the_oldest_of_a_tenant_gives_way(gives_way, policy, running):
    return gives_way(policy, running[::-1])


@bug(DynamicBatcher, "_start_underserved")
def nobody_gives_way(start_underserved, batcher, now):
    with ignored(batcher, "_preempt"):
        start_underserved(batcher, now)


bug_of_constants("the_underserved_are_looked_for_among_all", DynamicBatcher, "_start_underserved", LOOK_AHEAD=1000)
bug_of_constants("only_the_first_that_waits_can_be_underserved", DynamicBatcher, "_start_underserved", LOOK_AHEAD=1)
bug_of_constants("the_underserved_pass_others_without_end", DynamicBatcher, "_start_underserved", MAX_PASSED=1000)


@bug(DynamicBatcher, "_urgent")
def no_step_is_urgent(_, batcher):
    return []


@bug(DynamicBatcher, "_urgent")
def urgent_steps_leave_out_decodes_of_their_own(urgent, batcher):
    return [seq for seq in urgent(batcher) if seq.num_uncomputed_tokens > 1]


@bug(DynamicBatcher, "_urgent")
def urgent_steps_compute_all_that_run(urgent, batcher):
    return urgent(batcher) and batcher._running


@bug(DynamicBatcher, "_urgent")
def urgent_steps_are_one_tenants(urgent, batcher):
    seqs = urgent(batcher)
    return [seq for seq in seqs if seq.terms.tenant == seqs[0].terms.tenant]


@bug(DynamicBatcher, "_urgent")
def urgent_steps_last_while_their_tenants_decode(urgent, batcher):
    policy, size = batcher._policy, batcher.max_batch_size
    return urgent(batcher) or [seq for seq in batcher._running if policy.is_underserved(seq, size)]


@bug(DynamicBatcher, "_limit")
def the_pace_is_ignored(limit, batcher, *nums, paced=True):
    return limit(batcher, *nums, paced=False)


@bug(DynamicBatcher, "_limit")
def urgent_steps_are_paced(limit, batcher, *nums, paced=True):
    return limit(batcher, *nums, paced=True)


@bug(DynamicBatcher, "_limit")
def paced_steps_take_no_prompts_beside_decodes(limit, batcher, num_decodes, num_prompts, *, paced=True):
    is_stuck = paced and batcher._policy.paces_steps and num_decodes > 0
    return num_decodes if is_stuck else limit(batcher, num_decodes, num_prompts, paced=paced)


@bug(DynamicBatcher, "_limit")
def all_prompts_have_one_share(limit, batcher, num_decodes, num_prompts, *, paced=True):
    return limit(batcher, num_decodes, min(num_prompts, 1), paced=paced)


@bug(DynamicBatcher, "_limit")
def prompts_that_only_wait_have_shares(limit, batcher, num_decodes, num_prompts, *, paced=True):
    return limit(batcher, num_decodes, num_prompts + len(batcher._waiting), paced=paced)


@bug(DynamicBatcher, "_limit")
def prompts_take_what_they_like(limit, batcher, num_decodes, num_prompts, *, paced=True):
    return batcher.max_batched_tokens


@bug(dynamic_batcher.ChunkBudget, "observe")
def costs_are_learnt_once(observe, budget, *step):
    if budget._costs is None:
        observe(budget, *step)


@bug(dynamic_batcher.ChunkBudget, "tokens")
def a_target_that_is_missed_leaves_prompts_nothing(tokens, budget, num_decodes, *num_prompts):
    most = tokens(budget, num_decodes, *num_prompts)
    return num_decodes if num_decodes > 0 and most < budget._limit else most


def run_all():
    for seed in range(NUM_SEEDS):
        Simulation(seed).run()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name, monkeypatch):
    PLANTED[name](monkeypatch)
    with pytest.raises((AssertionError, KeyError)):  # the batcher's own books may be the first to miss something
        run_all()


@pytest.mark.parametrize(
    "name",
    [
        "hashes_leave_out_the_blocks_before",
        "a_chunk_is_one_token_over_the_budget",
        "a_preempted_sequence_loses_its_place",
        "an_announcement_is_never_withdrawn",
        "fair_shares_refund_nothing",
        "nobody_is_underserved",
        "a_deadline_for_the_start_is_ignored",
    ],
)
def test_the_state_machine_finds_it_too(name, monkeypatch):
    PLANTED[name](monkeypatch)
    without_shrinking = settings(test_batcher_state_machine.SETTINGS, phases=(Phase.generate,))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(test_batcher_state_machine.BatcherMachine, settings=without_shrinking)

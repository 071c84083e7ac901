"""Who waits and who passes: what does not fit is stepped over, by so many and no more."""

from engine import waiting_queue
from engine.dynamic_batcher import LOOK_AHEAD, DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from engine.sequence import SequenceStatus
from engine.waiting_queue import WaitingQueue
from tests.support.sequences import make_sequence
from tests.support.stepping import add, of, result_of, shares, step


def nearly_full():
    """A batcher of ten blocks, of which a stream holds six, later seven to nine; first come, first served."""
    batcher = DynamicBatcher(KVCacheManager(10, 4, prefix_caching=False), 16, 64, policy="fcfs")
    add(batcher, make_sequence("holder", 24, max_tokens=10))
    step(batcher)
    return batcher


def test_what_does_not_fit_is_stepped_over():
    batcher = nearly_full()
    in_turn = {}
    add(batcher, large := of("large", 17, max_tokens=1), of("small", 1, max_tokens=1))
    batcher._policy.started = lambda seq, **options: in_turn.update({seq.request_id: options["in_turn"]})
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))] == ["holder", "small"]
    assert (large.status, large.num_passed) == (SequenceStatus.WAITING, 1)
    batcher.abort("holder")
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))][-1] == "large"
    assert in_turn == {"small": False, "large": True}


def test_after_enough_have_passed_nobody_else_does(monkeypatch):
    monkeypatch.setattr(waiting_queue, "MAX_PASSED", 3)
    batcher, started = nearly_full(), []
    add(batcher, of("large", 17, max_tokens=1), *(of(f"small {i}", 1, max_tokens=1) for i in range(8)))
    while batcher.has_work:
        plan = batcher.schedule(0)
        started += [name for name, start, _ in shares(batcher, plan) if start == 0]
        batcher.update(plan, result_of(plan))
    assert started == [f"small {i}" for i in range(3)] + ["large"] + [f"small {i}" for i in range(3, 8)]


def test_one_step_looks_at_a_bounded_number():
    batcher = nearly_full()
    add(batcher, *(of(f"large {i}", 17, max_tokens=1) for i in range(LOOK_AHEAD + 1)), of("small", 1, max_tokens=1))
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))] == ["holder"]
    batcher.abort("large 0")
    assert [name for name, _, _ in shares(batcher, batcher.schedule(0))] == ["holder", "small"]


def test_the_queue_forgets_what_ended_while_it_waited():
    queue, seqs = WaitingQueue(), [of(str(i)) for i in range(100)]
    for i, seq in enumerate(seqs):
        seq.place = (i % 7, i)
        queue.push(seq)
    lengths = []
    for seq in seqs[:90]:
        seq.status = SequenceStatus.FINISHED
        queue.discard()
        lengths.append(len(queue._heap))
    assert lengths[:51] == [100] * 50 + [49], "those that ended lie there until they are the majority"
    assert len(queue) == 10
    assert lengths[-1] <= 20
    left = []
    while (seq := queue.next([])) is not None:
        left.append(seq)
    assert left == sorted(seqs[90:], key=lambda seq: seq.place)
    assert len(queue) == 0

"""Sequences in the background: they take what live ones leave, and give it back at once."""

from engine.dynamic_batcher import DynamicBatcher
from engine.kv_cache_manager import KVCacheManager
from tests.support.stepping import add, of, result_of, shares


def make(num_blocks=100, batch=4, tokens=64, share=0.1, policy="length", prefix_caching=False):
    cache = KVCacheManager(num_blocks, 4, prefix_caching=prefix_caching)
    return DynamicBatcher(cache, batch, tokens, policy=policy, background_share=share)


def run(batcher, seconds=lambda plan: 0.010):
    """One step; what it computed."""
    plan = batcher.schedule(0)
    computed = shares(batcher, plan)
    batcher.observe(plan, seconds(plan))
    batcher.update(plan, result_of(plan))
    return [name for name, _, _ in computed]


def line(name, num_tokens=4, **options):
    return of(name, num_tokens, background=True, **options)


def shares_of(batcher):
    return [seq.request_id for seq in batcher._background.running.values()]


def test_alone_it_fills_the_batch_in_order_of_arrival():
    batcher = make()
    add(batcher, *(line(f"b{i}", 1) for i in range(6)))
    assert run(batcher) == ["b0", "b1", "b2", "b3"]
    assert run(batcher) == ["b0", "b1", "b2", "b3"]
    stats = batcher.stats()
    assert (stats.num_running, stats.num_waiting) == (4, 0)


def test_a_live_one_takes_the_newest_ones_seat_and_has_its_prompts_steps_alone():
    batcher = make()
    add(batcher, *(line(f"b{i}", 1) for i in range(4)))
    run(batcher)
    add(batcher, of("live", 100))
    assert run(batcher) == ["live"]
    assert shares_of(batcher) == ["b0", "b1", "b2"]
    assert run(batcher) == ["live"]
    assert batcher.num_preemptions == 0


def test_live_ones_take_its_blocks_rather_than_each_others():
    batcher = make(num_blocks=16)
    add(batcher, *(line(f"b{i}", 11, max_tokens=50) for i in range(3)))
    while len(batcher._background.running) < 3:
        run(batcher)
    add(batcher, of("live", 59, max_tokens=4))
    assert run(batcher) == ["live"]
    assert shares_of(batcher) == []
    add(batcher, of("another", 20))
    for _ in range(4):
        run(batcher)
    assert shares_of(batcher) == []  # none starts while a live one waits


def test_beside_decodes_it_gets_what_lengthens_the_step_by_its_share_at_most():
    batcher = make(batch=8, share=0.3, num_blocks=2000)

    def seconds(plan):
        return 0.010 + 0.001 * plan.num_tokens  # 11 ms with one live stream

    add(batcher, *(line(f"b{i}", 1, max_tokens=300) for i in range(7)))
    run(batcher, seconds)
    add(batcher, of("live", 1, max_tokens=300))
    steps = [run(batcher, seconds) for _ in range(60)]
    assert steps[0] == ["live"]  # its prompt
    assert max(map(len, steps)) == 1 + 4  # which is tried once
    assert steps.count(["live", "b0", "b1", "b2"]) > 45
    assert steps.count(["live"]) >= 2  # it is measured alone anew
    assert len(run(make_without_share(), seconds)) == 1


def make_without_share():
    batcher = make(share=0.0)
    add(batcher, of("live", 1, max_tokens=300))
    run(batcher)
    add(batcher, line("b"))
    return batcher


def test_its_prompts_go_on_beside_decodes_with_what_is_left_of_the_share():
    batcher = make(batch=8, share=0.5, num_blocks=2000)

    def seconds(plan):
        return 0.010 + 0.001 * plan.num_decodes + 0.0005 * plan.num_prompt_tokens

    add(batcher, of("live", 60, max_tokens=300))
    for _ in range(4):
        run(batcher, seconds)
    add(batcher, line("b", 60))
    added = []
    for _ in range(12):
        plan = batcher.schedule(0)
        added.append(plan.num_prompt_tokens)
        batcher.observe(plan, seconds(plan))
        batcher.update(plan, result_of(plan))
    assert max(added) <= 11  # 5.5 ms
    assert sum(added) == 60


def test_its_prompts_alone_come_in_short_steps():
    batcher = make(num_blocks=1000, tokens=512)

    def seconds(plan):
        return 0.001 + 0.001 * plan.num_tokens

    add(batcher, line("b", 1000))
    sizes = []
    while not sizes or sizes[-1] > 1:
        plan = batcher.schedule(0)
        sizes.append(plan.num_tokens)
        batcher.observe(plan, seconds(plan))
        batcher.update(plan, result_of(plan))
    assert max(sizes) <= 50  # of 50 ms
    assert sizes[5] >= 40


def test_a_live_one_does_not_wait_for_a_prefix_that_it_computes():
    batcher = make(prefix_caching=True)
    add(batcher, line("b", 60))
    run(batcher)
    add(batcher, of("live", 60))
    assert run(batcher) == ["live"]


def test_lines_with_one_prefix_compute_it_once():
    batcher = make(prefix_caching=True, num_blocks=200)
    add(batcher, *(line(f"b{i}", 61) for i in range(3)))
    computed = {}
    while batcher.has_work:
        plan = batcher.schedule(0)
        for name, _, count in shares(batcher, plan):
            computed[name] = computed.get(name, 0) + count
        batcher.observe(plan, 0.01)
        batcher.update(plan, result_of(plan))
    assert computed["b0"] == 61 + 15
    assert computed["b1"] == computed["b2"] == 1 + 15


def test_it_does_not_count_in_its_tenants_fair_share():
    batcher = make(policy="fair", batch=1)
    add(batcher, *(line(f"b{i}", tenant=b"a") for i in range(20)))
    add(batcher, of("a", tenant=b"a"), of("b", tenant=b"b"))
    assert run(batcher) == ["a"]


def test_it_is_aborted_and_expires_and_fails_like_any_other():
    batcher = make()
    add(batcher, line("a"), line("b", deadline=1.0), line("c"), line("d"))
    run(batcher)
    batcher.abort("a")
    assert [output.request_id for output in batcher.expire(2.0)] == ["b"]
    plan = batcher.schedule(2.0)
    failed = {output.request_id for output in batcher.fail(plan)}
    assert failed <= {"c", "d"}
    for name in {"c", "d"} - failed:
        batcher.abort(name)
    batcher.check_idle()

"""What the engine says of itself: who runs, who waits and why; asking changes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from engine.engine import Engine
from engine.protocol import GenerateRequest, SamplingParams, SchedulingParams
from engine.snapshot import EngineSnapshot, Inspect
from tests.support.running import finish, greedy_params, load, make_prompt, request

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Engine:
    return load(tiny_llama, num_kv_blocks=40, max_batch_size=2, max_seq_len=512)


def look(engine: Engine, limit: int = 100) -> EngineSnapshot:
    return engine.snapshot(Inspect(7, limit))


def background(prompt: list[int]) -> GenerateRequest:
    return GenerateRequest("line.1", prompt, greedy_params(4), 1, SchedulingParams(time.monotonic(), background=True))


def test_it_tells_who_runs_and_why_others_wait(engine: Engine) -> None:
    assert look(engine).batcher.running == look(engine).batcher.waiting == []
    large, small, late = request(make_prompt(400), greedy_params(90)), request([65], greedy_params(5)), background([66])
    other = request(make_prompt(300, seed=1), greedy_params(20))
    for one in (large, other):
        engine.add(one)
        engine.step()
    snapshot = look(engine)
    [running], [waiting] = snapshot.batcher.running, snapshot.batcher.waiting
    assert (running.request_id, running.status, running.why) == (large.request_id, "running", "")
    assert (running.num_prompt_tokens, running.num_output_tokens, running.max_tokens) == (400, 2, 90)
    assert running.num_blocks == 26
    assert running.seconds_running is not None
    assert running.age >= running.seconds_running > 0
    assert (waiting.request_id, waiting.seconds_running) == (other.request_id, None)
    assert waiting.why == "blocks: 20 are needed (with 1 spare), 14 are free"
    engine.add(small)
    engine.add(late)
    engine.step()
    batcher = look(engine).batcher
    assert {one.why for one in batcher.waiting} == {"all 2 seats of the batch are taken"}
    assert [(one.request_id, one.why) for one in batcher.background] == [
        ("line.1", "all 2 seats of the batch are taken")
    ]
    assert (batcher.num_running, batcher.num_waiting, batcher.num_background_waiting) == (2, 1, 1)
    last = look(engine).last_step
    assert last is not None
    assert (last.num_decodes, last.num_prompts, last.num_prompt_tokens) == (1, 1, 1)
    assert last.seconds > 0
    finish_all(engine)


def finish_all(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
    engine.batcher.check_idle()


def test_lists_are_bounded_and_counts_are_not(engine: Engine) -> None:
    for number in range(50):
        engine.add(request([number + 1] * 20, SamplingParams(max_tokens=3)))
    engine.step()
    snapshot = look(engine, limit=5)
    assert len(snapshot.batcher.running) == 2
    assert len(snapshot.batcher.waiting) == 5
    assert snapshot.batcher.num_waiting == 48
    assert look(engine, limit=0).batcher.waiting == []
    finish_all(engine)


def test_it_has_no_prompt_and_no_output(engine: Engine) -> None:
    prompt = [91, 92, 93]
    engine.add(request(prompt, SamplingParams(max_tokens=8, stop=("secret",))))
    engine.step()
    text = msgspec.json.encode(look(engine)).decode()
    assert "secret" not in text
    assert "91,92" not in text
    finish_all(engine)


def test_asking_changes_no_token_and_leaves_nothing(engine: Engine) -> None:
    requests = [request(make_prompt(30, seed=i), greedy_params(12)) for i in range(6)]
    for one in requests:
        engine.add(one)
    asked: list[list[int]] = []
    results: dict[str, list[int]] = {one.request_id: [] for one in requests}
    while engine.has_work:
        look(engine)
        for output in engine.step().outputs:
            results[output.request_id] += output.token_ids
    engine.batcher.check_idle()
    asked = list(results.values())
    again = [request(make_prompt(30, seed=i), greedy_params(12)) for i in range(6)]
    for one in again:
        engine.add(one)
    assert [result.token_ids for result in finish(engine, again)] == asked


def test_steps_are_timed_and_counted(engine: Engine) -> None:
    before = engine.batcher.stats()
    engine.add(request([5] * 10, greedy_params(4)))
    finish_all(engine)
    after = engine.batcher.stats()
    assert after.step_tokens - before.step_tokens == 10 + 3
    assert 0 < after.step_seconds - before.step_seconds < 60

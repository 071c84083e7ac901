"""Replayed steps give the tokens that the model itself gives, whoever comes and goes between them."""

import logging
import math

import pytest

from engine.protocol import AbortRequest
from kernels import native
from tests.support import tiny_deepseek, tiny_dynamic_moe
from tests.support.running import greedy_params, load, make_prompt, request

pytestmark = pytest.mark.skipif(native.ISA is None, reason="the native kernels are not built")

CASES = [
    *(("llama", {"dtype": dtype}) for dtype in ("float32", "bfloat16")),
    ("llama", {"dtype": "bfloat16", "quantization": "int8"}),
    ("llama", {"dtype": "bfloat16", "kv_cache_dtype": "int8"}),
    *((model, {"dtype": "bfloat16"}) for model in ("v2-lite", "v2", "v3")),
    ("llama", {"dtype": "bfloat16", "kv_cache_dtype": "int4"}),
    ("v2", {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"}),
    ("v2, latents of 32", {"dtype": "bfloat16", "kv_cache_dtype": "int4"}),
    ("v3", {"dtype": "bfloat16", "num_kv_blocks": 8}),  # sequences are preempted
    ("dynamic-moe", {"dtype": "bfloat16"}),
    ("dynamic-moe", {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"}),
]


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory):
    """Of a tiny model by name."""
    folders = {"llama": tiny_llama}

    def find(name):
        if name not in folders:
            path = tmp_path_factory.mktemp(name)
            if name == "dynamic-moe":
                folders[name] = tiny_dynamic_moe.write(path, "mixed")
            else:
                variant, _, latents = name.partition(", latents of ")
                folders[name] = tiny_deepseek.write(path, variant, kv_lora_rank=int(latents or 24))
        return folders[name]

    return find


def runner_of(engine):
    return engine.executor.runner


def run(engine, **sampling):
    """Tokens of sequences of many lengths that come by and by, one of which is aborted: the batch grows and shrinks."""
    requests = [
        request(make_prompt(3 + 11 * i % 60, seed=i), greedy_params(5 + 7 * i % 30, **sampling)) for i in range(9)
    ]
    doomed = requests[4].request_id
    tokens = {item.request_id: [] for item in requests}
    arriving, step = list(requests), 0
    while arriving or engine.has_work:
        if step % 3 == 0 and arriving:
            engine.add(arriving.pop(0))
        if step == 15:
            engine.abort(AbortRequest(doomed))
        for output in engine.step().outputs:
            tokens[output.request_id] += output.token_ids
        step += 1
    engine.batcher.check_idle()
    return list(tokens.values())


@pytest.mark.parametrize(
    ("model", "options"), CASES, ids=lambda case: case if isinstance(case, str) else "-".join(map(str, case.values()))
)
def test_replayed_steps_bring_the_same_tokens(folder, model, options):
    steps_alike = {"max_batch_size": 8, "prefill_share": math.inf}  # whatever they last
    replaying, plain = (load(folder(model), **steps_alike, **options) for _ in range(2))
    runner_of(plain).graph = None
    for sampling in ({}, {"temperature": 1.0, "seed": 3}, {"prompt_logprobs": 1}):
        assert run(replaying, **sampling) == run(plain, **sampling)
    assert runner_of(replaying).graph is not None
    assert (replaying.batcher.num_preemptions > 0) == ("num_kv_blocks" in options)


def test_a_model_that_computes_with_torch_is_not_captured(folder, caplog):
    with caplog.at_level(logging.INFO, logger="engine.step_graph"):
        engine = load(folder("v32"), dtype="bfloat16", max_batch_size=8)
    run(engine)
    assert [record.message.partition(",")[0] for record in caplog.records] == ["steps are computed without a graph"]
    assert runner_of(engine).graph is None


@pytest.mark.parametrize("model", ["llama", "v2-lite", "dynamic-moe"])
def test_steps_of_every_kind_are_replayed(folder, model, monkeypatch):
    """Except for long chunks whose keys and values are expanded (engine.models.mla)."""
    engine = load(folder(model), dtype="bfloat16", max_batch_size=8, max_batched_tokens=40)
    monkeypatch.setattr(runner_of(engine).model, "forward", None)  # nobody can call it
    run(engine, prompt_logprobs=1)


def test_asking_whether_a_batch_can_be_replayed_changes_nothing(folder):
    engine = load(folder("v2-lite"), dtype="bfloat16", max_batch_size=8, prefill_share=math.inf, prefix_caching="off")
    graph = runner_of(engine).graph
    plain = run(engine)
    can_replay, asked = graph.can_replay, []

    def ask_twice(batch):
        asked.append(can_replay(batch))
        assert can_replay(batch) == asked[-1]
        return asked[-1]

    graph.can_replay = ask_twice
    assert run(engine) == plain
    assert any(asked)
    assert not all(asked)

"""Values of prompts are transformers', whatever the pool, the prefix cache, the chunks, and the streams beside them."""

import pytest
import torch
from transformers import LlamaForSequenceClassification

from engine.protocol import PoolingParams, PoolRequest, SchedulingParams
from kernels import native
from tests.support import tiny
from tests.support.dynamic_moe_reference import DynamicMoEReference
from tests.support.running import (
    finish,
    generate,
    greedy_params,
    load,
    make_prompt,
    pool,
    pool_request,
    relative_error,
    request,
)

BEGINNING = make_prompt(48, seed=1)
PROMPTS = [
    make_prompt(1),
    make_prompt(17, seed=2),
    *(BEGINNING[:length] + make_prompt(rest, seed=3 + rest) for length, rest in ((20, 2), (48, 1), (48, 22), (33, 9))),
]
KINDS = [("embed", "last"), ("embed", "mean")]
LABELS = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}


@pytest.fixture(scope="module")
def classifier(make_llama):
    return make_llama(kind=LlamaForSequenceClassification, pad_token_id=0, **LABELS)


def states_of(model, prompt):
    with torch.no_grad():
        return model(torch.tensor([prompt])).last_hidden_state[0]


def test_embeddings_are_the_hidden_states_of_transformers(tiny_llama):
    engine, reference = load(tiny_llama), tiny.reference(tiny_llama).model
    for prompt in PROMPTS:
        states = states_of(reference, prompt)
        assert relative_error(pool(engine, [prompt])[0], states[-1]) < 1e-4
        assert relative_error(pool(engine, [prompt], "embed", "mean")[0], states.mean(0)) < 1e-4


def test_logits_of_labels_are_those_of_transformers(classifier):
    engine = load(classifier)
    assert engine.info.tasks == ("embed", "classify")
    assert engine.info.labels == ("bad", "fair", "good")
    reference = LlamaForSequenceClassification.from_pretrained(classifier, dtype=torch.float32).eval()
    for prompt, logits in zip(PROMPTS, pool(engine, PROMPTS, "classify"), strict=True):
        with torch.no_grad():
            assert relative_error(logits, reference(torch.tensor([prompt])).logits[0]) < 1e-4
        assert relative_error(pool(engine, [prompt])[0], states_of(reference.model, prompt)[-1]) < 1e-4


@pytest.mark.parametrize("variant", ["full", "mixed"])
def test_values_of_dynamic_moe_are_those_of_the_definition(make_dynamic_moe, variant):
    folder = make_dynamic_moe(variant)
    engine = load(folder, max_batched_tokens=16, max_batch_size=8)
    reference = DynamicMoEReference(folder)
    assert engine.info.tasks == ("generate", "embed", "classify", "value")
    assert engine.info.labels == ("good", "bad", "unclear")
    code = [PoolRequest(f"{i}", prompt, PoolingParams(task="value"), SchedulingParams(0.0), bytes([1] * len(prompt)))
            for i, prompt in enumerate(PROMPTS)]  # fmt: skip
    for item in code:
        engine.add(item)
    in_code = [result.pooled for result in finish(engine, code)]
    classes, values, means = (pool(engine, PROMPTS, *kind) for kind in (("classify",), ("value",), ("embed", "mean")))
    for i, prompt in enumerate(PROMPTS):
        assert relative_error(classes[i], reference.head("classification", prompt)) < 1e-4
        assert relative_error(values[i], reference.head("reasoning", prompt)) < 1e-4
        assert relative_error(torch.tensor(in_code[i]), reference.head("reasoning", prompt, [1] * len(prompt))) < 1e-4
        assert relative_error(means[i], reference.hidden(prompt).mean(0)) < 1e-4


@pytest.mark.parametrize("num_kv_blocks", [21, 420], ids=["least pool", "ample pool"])
@pytest.mark.parametrize(("prefix_caching", "chunk"), [("on", 7), ("off", 7), ("on", 512)])
def test_the_same_values_and_tokens_whatever_runs_beside(model, num_kv_blocks, prefix_caching, chunk):
    check_beside_streams(model, num_kv_blocks, prefix_caching, chunk)


@pytest.mark.parametrize("variant", ["mixed", "local"])
@pytest.mark.parametrize(("prefix_caching", "chunk"), [("on", 7), ("off", 512)])
def test_the_same_where_layers_release_blocks(make_dynamic_moe, variant, prefix_caching, chunk):
    check_beside_streams(make_dynamic_moe(variant), 70, prefix_caching, chunk)


def check_beside_streams(model, num_kv_blocks, prefix_caching, chunk):
    """Prompts are cut, wait, and are found in the cache; streams run beside them, whose tokens do not change."""
    sizes = {"num_kv_blocks": num_kv_blocks, "block_size": 4, "max_batch_size": min(chunk, 8)}
    engine = load(model, prefix_caching=prefix_caching, max_batched_tokens=chunk, max_seq_len=84, **sizes)
    alone = load(model, prefix_caching="off")
    expected = [pool(alone, [prompt], *kind)[0] for prompt in PROMPTS for kind in KINDS]
    tokens = [result.token_ids for result in generate(alone, PROMPTS, greedy_params(12))]
    for _ in range(2):  # the second time, prefixes are warm
        requests = [item for prompt in PROMPTS for item in (request(prompt, greedy_params(12)), *pools(prompt))]
        for item in requests:
            engine.add(item)
        results = finish(engine, requests)
        assert [result.token_ids for result in results if result.pooled is None] == tokens
        pooled = [torch.tensor(result.pooled) for result in results if result.pooled is not None]
        assert max(relative_error(*pair) for pair in zip(pooled, expected, strict=True)) < 1e-5
        assert {result.finish_reason for result in results} == {"stop", "length"}
    assert any(result.num_cached_tokens for result in results) == (prefix_caching == "on")


def pools(prompt):
    return [pool_request(prompt, *kind) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_preempted_prompt_begins_anew(tiny_llama, kind):
    engine = load(tiny_llama, max_batched_tokens=16, max_batch_size=1)
    item = pool_request(BEGINNING, *kind)
    engine.add(item)
    engine.step()
    engine.step()
    [seq] = engine.batcher._running.values()
    assert seq.num_computed_tokens == 32
    engine.batcher._preempt(seq)
    (result,) = finish(engine, [item])
    assert relative_error(torch.tensor(result.pooled), pool(load(tiny_llama), [BEGINNING], *kind)[0]) < 1e-5


def test_a_mean_takes_no_cached_prefix_and_leaves_one(tiny_llama):
    engine = load(tiny_llama, block_size=4)
    cached = []
    for kind in ("mean", "mean", "last", "mean"):
        item = pool_request(BEGINNING, "embed", kind)
        engine.add(item)
        cached += [result.num_cached_tokens for result in finish(engine, [item])]
    assert cached == [0, 0, 44, 0]


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantization": "int8"}], ids=str)
def test_values_in_other_dtypes_are_near(tiny_llama, classifier, options):
    for folder, kind in ((tiny_llama, ("embed", "mean")), (tiny_llama, ("embed",)), (classifier, ("classify",))):
        exact, near = (pool(load(folder, **more), PROMPTS, *kind) for more in ({}, options))
        assert relative_error(near, exact) < 0.15
        assert torch.cosine_similarity(near, exact).min() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_no_numbers_end_the_sequence_with_an_error(tiny_llama, kind):
    engine = load(tiny_llama, block_size=4)
    engine.executor.runner.model._norm.fill_(float("nan"))
    item = pool_request(BEGINNING, *kind)
    engine.add(item)
    (result,) = finish(engine, [item])
    assert (result.finish_reason, result.pooled) == ("error", None)


@pytest.mark.skipif(native.ISA is None, reason="the native kernels are not built")
def test_small_steps_are_replayed(classifier, monkeypatch):
    engine = load(classifier, prefix_caching="off")
    graph, replayed = engine.executor.runner.graph, []
    replay = graph.replay
    monkeypatch.setattr(graph, "replay", lambda batch: replayed.append(len(batch.rows_R)) or replay(batch))
    requests = [pool_request(PROMPTS[3], *kind) for kind in (*KINDS, ("classify", "last"))]
    for item in requests:
        engine.add(item)
    finish(engine, requests)
    assert replayed == [1 + 49 + 1]


def test_a_step_takes_many_short_prompts(tiny_llama):
    engine = load(tiny_llama, max_batch_size=64)
    requests = [pool_request(make_prompt(5, seed=i)) for i in range(128)]
    for item in requests:
        engine.add(item)
    finish(engine, requests)
    assert engine.batcher.stats().num_steps == 2

"""DynamicMoE against its definition (tests.support.dynamic_moe_reference), whatever computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from kernels import native
from tests.support import checkpoints, tiny_dynamic_moe
from tests.support.dynamic_moe_reference import DynamicMoEReference
from tests.support.running import finish, greedy_params, load, make_prompt, record_logits, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LENGTH, NUM_TOKENS = 130, 24
KERNELS = ["reference", "torch", *(["native"] if native.ISA else [])]


class Variant:
    """A checkpoint, and what its definition says of a text."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._reference = folder, DynamicMoEReference(folder)
        self._logits: dict[tuple[list[int], list[int]], torch.Tensor] = {}

    def logits(self, ids: list[int], modalities: list[int]) -> torch.Tensor:
        key = tuple(ids), tuple(modalities)
        if key not in self._logits:
            self._logits[key] = self._reference.logits(ids, modalities)
        return self._logits[key]


@pytest.fixture(scope="module", params=tiny_dynamic_moe.VARIANTS)
def variant(request: pytest.FixtureRequest, make_dynamic_moe: Callable[..., Path]) -> Variant:
    return Variant(make_dynamic_moe(request.param))


def check(variant: Variant, modality: int = 0, limit: float = 1e-4, **options) -> int:
    """Logprobs of every position, prefilled and decoded, and greedy tokens; how many tokens were cached."""
    engine = load(variant.folder, **options)
    recorded = record_logits(engine)
    prompt = make_prompt(LENGTH)
    modalities = bytes([modality]) * LENGTH
    item = request(prompt, greedy_params(NUM_TOKENS, prompt_logprobs=0), modalities=modalities if modality else b"")
    engine.add(item)
    (result,) = finish(engine, [item])
    ids = prompt + result.token_ids
    expected = variant.logits(ids[:-1], [modality] * (len(ids) - 1))
    assert result.token_ids == expected[LENGTH - 1 :].argmax(-1).tolist()
    assert (torch.cat(recorded).log_softmax(-1) - expected.log_softmax(-1)).abs().max() <= limit
    return result.num_cached_tokens


@pytest.mark.parametrize("kernels", KERNELS)
def test_logprobs_and_greedy_tokens_are_those_of_the_definition(variant, kernels):
    check(variant, kernels=kernels)


def test_a_prompt_in_chunks(variant):
    check(variant, max_batched_tokens=16, max_batch_size=8)


def test_in_a_crowd_after_a_cached_prefix_and_preempted(make_dynamic_moe):
    """Greedy tokens of each prompt, one after another and all together, in a pool that cannot hold them all."""
    variant = Variant(make_dynamic_moe("mixed"))
    engine = load(variant.folder, num_kv_blocks=30, max_batched_tokens=48, max_batch_size=8)
    beginning = make_prompt(50)
    prompts = [beginning + make_prompt(9, seed=1), beginning + make_prompt(30, seed=2), make_prompt(20, seed=3)]
    requests = [request(prompt, greedy_params(3 * NUM_TOKENS)) for prompt in prompts * 3]
    results = []
    for batch in (requests[:1], requests[1:]):
        for item in batch:
            engine.add(item)
        results += finish(engine, batch)
    for prompt, result in zip(prompts * 3, results, strict=True):
        ids = prompt + result.token_ids
        expected = variant.logits(ids[:-1], [0] * (len(ids) - 1))
        assert result.token_ids == expected[len(prompt) - 1 :].argmax(-1).tolist()
    assert any(result.num_cached_tokens for result in results)
    assert engine.batcher.num_preemptions > 0


@pytest.mark.parametrize("modality", [1, 2])
def test_other_modalities_are_embedded_in_their_own_way(make_dynamic_moe, modality):
    variant = Variant(make_dynamic_moe("mixed"))
    check(variant, modality)
    text, code = (variant.logits(make_prompt(9), [i] * 9) for i in (0, modality))
    assert (text - code).abs().max() > 0.1


def test_task_heads_read_the_last_hidden_state(make_dynamic_moe):
    folder = make_dynamic_moe("mixed")
    model, reference = load(folder).executor.runner.model, DynamicMoEReference(folder)
    prompt = make_prompt(20)
    hidden = reference.hidden(prompt)
    assert set(model.heads) == {"classification", "reasoning"}
    for name, head in model.heads.items():
        torch.testing.assert_close(head(hidden[-1:])[0], reference.head(name, prompt), rtol=1e-5, atol=1e-5)


def test_bf16_is_near(make_dynamic_moe):
    """Means, as a token near the border between two experts may go to the other one."""
    variant = Variant(make_dynamic_moe("mixed"))
    engine = load(variant.folder, dtype="bfloat16")
    recorded = record_logits(engine)
    prompt = make_prompt(LENGTH)
    item = request(prompt, greedy_params(1, prompt_logprobs=0))
    engine.add(item)
    finish(engine, [item])
    expected = variant.logits(prompt, [0] * LENGTH)
    error = (torch.cat(recorded)[:LENGTH].log_softmax(-1) - expected.log_softmax(-1)).abs()
    assert error.mean() <= 0.03


@pytest.mark.parametrize(
    "name",
    [
        "model.modality_scale.weight",
        "model.layers.1.mlp.router.noise",
        "model.layers.2.compression.norm.bias",
        "heads.reasoning.bias",
    ],
)
def test_every_tensor_is_accounted_for(make_dynamic_moe, tmp_path, name):
    folder = checkpoints.copy(make_dynamic_moe("mixed"), tmp_path / "copy")
    checkpoints.edit_weights(folder, lambda tensors: tensors.update({f"{name}s": tensors.pop(name)}))
    assert checkpoints.refusal(folder).endswith(f"missing: {name}; unexpected: {name}s")

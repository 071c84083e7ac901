"""From a plan to its result: the logprobs that a runner reports are those of transformers."""

import pytest
import torch

from engine.protocol import SamplingParams
from tests.support import tiny
from tests.support.running import generate, greedy_params, load, make_prompt


@pytest.mark.parametrize("chunk", [1, 50, 512])
def test_prompt_logprobs_are_those_of_transformers(tiny_llama, chunk):
    prompt = make_prompt(150)
    engine = load(tiny_llama, max_batch_size=1, max_batched_tokens=chunk)
    (result,) = generate(engine, [prompt], greedy_params(0, prompt_logprobs=3))
    with torch.no_grad():
        expected = tiny.reference(tiny_llama)(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert (result.token_ids, result.finish_reason) == ([], "length")
    assert len(result.prompt_logprobs) == 149
    for position, report in enumerate(result.prompt_logprobs):
        top = expected[position].topk(3)
        assert report.logprob == pytest.approx(float(expected[position, prompt[position + 1]]), abs=1e-3)
        assert report.top_ids == top.indices.tolist()
        assert report.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-3)


def test_output_logprobs_are_those_of_transformers(tiny_llama):
    prompt = make_prompt(30)
    (result,) = generate(
        load(tiny_llama), [prompt], SamplingParams(max_tokens=20, logprobs=2, temperature=1.5, ignore_eos=True)
    )
    ids = prompt + result.token_ids
    with torch.no_grad():
        expected = tiny.reference(tiny_llama)(torch.tensor([ids])).logits[0].log_softmax(-1)
    for i, (token_id, report) in enumerate(zip(result.token_ids, result.logprobs, strict=True)):
        row = expected[len(prompt) - 1 + i]
        assert report.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
        assert report.top_ids == row.topk(2).indices.tolist()

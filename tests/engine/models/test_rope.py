"""RoPE under every kind of scaling, against transformers."""

import pytest
import torch

from tests.support import checkpoints, tiny
from tests.support.running import assert_parity, load, make_prompt, prompt_logits, relative_error


@pytest.mark.parametrize("rope", tiny.ROPES.values(), ids=tiny.ROPES.keys())
def test_parity_with_transformers(make_llama, rope):
    folder = make_llama(rope_parameters=rope)
    assert_parity(load(folder), tiny.reference(folder), make_prompt(201), 64)


def test_dynamic_scaling_stretches_to_a_longer_max_seq_len(make_llama):
    folder, prompt = make_llama(rope_parameters=tiny.ROPES["dynamic"], max_position_embeddings=64), make_prompt(150)
    with torch.no_grad():
        expected = tiny.reference(folder)(torch.tensor([prompt])).logits[0]
    assert relative_error(prompt_logits(load(folder, max_seq_len=150), prompt), expected) <= 1e-4


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope' is not supported; supported are default, linear"),
        ({"rope_type": "linear"}, "'linear' lacks 'factor'"),
        ({"rope_type": "llama3", "factor": 2.0}, "'llama3' lacks 'low_freq_factor'"),
    ],
    ids=str,
)
def test_a_scaling_that_is_not_supported_is_refused(folder, rope, message):
    checkpoints.edit_config(folder, {"rope_parameters": rope})
    assert message in checkpoints.refusal(folder)

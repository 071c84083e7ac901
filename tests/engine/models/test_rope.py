"""RoPE under every kind of scaling, against transformers."""

import pytest
import torch

from engine.models.rope import RotaryTable
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


def test_a_table_grows_to_the_longest_sequence_and_stays_the_same():
    grown, whole = (RotaryTable(1.0 / torch.arange(1, 9), 1.5) for _ in range(2))
    expected = whole.at(list(range(20000)))
    for positions in ([0], [5, 4095], [4096], [19999, 3], list(range(20000))):
        for mine, theirs in zip(grown.at(positions), expected, strict=True):
            assert torch.equal(mine, theirs[positions])
    angles = 19999.0 / torch.arange(1, 9)
    cos, sin = (part[-1] for part in expected)
    torch.testing.assert_close(cos, 1.5 * torch.cat([angles, angles]).cos())
    torch.testing.assert_close(sin, 1.5 * torch.cat([-angles.sin(), angles.sin()]))


def test_a_table_takes_no_memory_for_positions_that_no_sequence_has(make_llama):
    engine = load(make_llama(max_position_embeddings=1 << 23), block_size=16, num_kv_blocks=64)
    cos_TD, _ = engine.executor.runner.model.rotary_table.at([7])
    assert len(cos_TD) == 1
    assert engine.executor.runner.model.rotary_table.num_positions == 4096


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

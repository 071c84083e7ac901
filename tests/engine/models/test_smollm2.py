"""The built-in model itself, against transformers with weights that the gguf package reads (no code of ours)."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

from engine.loading.resolve import resolve_model
from tests.support.gguf_writer import gguf_name
from tests.support.running import assert_parity, generate, greedy_params, load, pool

pytestmark = pytest.mark.smollm2

FRANCE = [504, 3575, 282, 4649, 314]  # "The capital of France is"
PARIS = 7042  # " Paris"


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu").tie_weights()
    model.model.rotary_emb.__init__(config)  # its buffers follow from the config
    heads = {"q_proj": 9, "k_proj": 3}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[gguf_name(name)]
            values = dequantize(tensor.data, tensor.tensor_type)
            if (num_heads := heads.get(name.split(".")[-2])) is not None:  # neighbours to halves
                values = values.reshape(num_heads, -1, 2, values.shape[-1]).swapaxes(1, 2)
            parameter.copy_(torch.from_numpy(np.array(values)).reshape(parameter.shape))
    model.set_attn_implementation("eager")
    return model.eval()


def test_the_config_is_read_from_the_gguf_metadata(smollm2):
    config = resolve_model(str(smollm2)).read_config()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (49152, 576, 1536)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.head_dim, config.max_position_embeddings, config.rope_theta) == (64, 8192, 100000.0)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert (config.tie_word_embeddings, config.attention_bias, config.mlp_bias) == (True, False, False)
    assert config.eos_token_ids == (2,)


def test_logits_and_greedy_tokens_are_those_of_transformers(smollm2, reference):
    assert_parity(load(smollm2, num_kv_blocks=64, quantization="none"), reference, FRANCE, 32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_capital_of_france_is_paris(smollm2, dtype):
    (result,) = generate(load(smollm2, num_kv_blocks=64, dtype=dtype), [FRANCE], greedy_params(1))
    assert result.token_ids == [PARIS]


def test_embeddings_are_the_hidden_states_of_transformers(smollm2, reference):
    engine = load(smollm2, num_kv_blocks=64, max_batched_tokens=64, quantization="none")
    for prompt in (FRANCE, [7042, *FRANCE] * 25):  # the second in chunks
        with torch.no_grad():
            states = reference.model(torch.tensor([prompt])).last_hidden_state[0]
        for pooling, expected in (("last", states[-1]), ("mean", states.mean(0))):
            embedding = pool(engine, [prompt], "embed", pooling)[0]
            torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-4)

"""A model that cannot fit is refused before it is read, with what would fit; one that just fits is not."""

import pytest
import torch

from engine import device
from engine.errors import ConfigError
from engine.loading import random_checkpoint
from engine.loading.presets import PRESETS
from engine.loading.safetensors_source import SafetensorsSource
from tests.support.gguf_writer import Kind, write_gguf
from tests.support.running import load

GIB = 1 << 30
MOE = {"vocab_size": 2000, "hidden_size": 256, "num_hidden_layers": 3, "n_routed_experts": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A mixture whose weights take about 15 MB in bf16."""
    folder = tmp_path_factory.mktemp("model") / "moe"
    options = {"dtype": torch.bfloat16, "seed": 0, "fp8": False, "progress": False}
    random_checkpoint.write(folder, {**PRESETS["v2-lite"], **MOE, "intermediate_size": 4096}, **options)
    return folder


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory is free."""

    def set_to(num_bytes):
        monkeypatch.setattr(device, "available_bytes", lambda device, *, with_swap=False: int(num_bytes))

    return set_to


def refusal(model, monkeypatch, **settings):
    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsSource, "read", lambda *_: pytest.fail("a tensor was read"))
        with pytest.raises(ConfigError) as caught:
            load(model, dtype="bfloat16", **settings)
    return str(caught.value)


def needed(model, free, monkeypatch, **settings):
    """What a refusal says is needed, in bytes."""
    free(0)
    return float(refusal(model, monkeypatch, **settings).partition(" needs ")[2].partition(" GiB")[0]) * GIB


def test_a_refusal_says_what_is_needed_and_free_and_what_would_fit(model, free, monkeypatch):
    plain = needed(model, free, monkeypatch)
    int8 = needed(model, free, monkeypatch, quantization="int8")
    assert 8e6 < int8 < 0.7 * plain < 20e6
    free(0.9 * plain)
    text = refusal(model, monkeypatch)
    assert text.startswith(f"{model} needs {plain / GIB:.3g} GiB; {0.9 * plain / GIB:.3g} are free (weights 0.0")
    assert f"{int8 / GIB:.3g} with --quantization int8" in text
    int4 = needed(model, free, monkeypatch, quantization="int4")
    assert int4 < 0.8 * int8
    assert f"It needs {int4 / GIB:.3g} with --quantization int4" in text
    free(0.9 * plain)
    assert load(model, dtype="bfloat16", quantization="int8", num_kv_blocks=4).info.vocab_size == 2000


def test_where_nothing_fits_the_least_is_named(model, free, monkeypatch):
    free(1e6)
    assert ". The least is 0.0" in refusal(model, monkeypatch)
    assert refusal(model, monkeypatch, quantization="int4").endswith(". No --quantization needs less")


def test_int4_is_not_proposed_for_weights_that_have_few_bits(tmp_path, free, monkeypatch):
    sizes = {"vocab_size": 500, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "eos_token_id": 0}
    config = {**PRESETS["llm-7b"], **sizes, **rope}
    random_checkpoint.write(tmp_path, config, dtype=torch.bfloat16, seed=0, fp8=False, progress=False)
    free(1000)
    for kind, proposed in ((Kind.Q8_0, True), (Kind.Q4_0, False)):
        write_gguf(tmp_path, tmp_path / "model.gguf", kind)
        assert ("--quantization int4" in refusal(tmp_path / "model.gguf", monkeypatch)) is proposed


def test_there_is_no_refusal_near_the_limit(model, free, monkeypatch):
    limit = needed(model, free, monkeypatch, num_kv_blocks=4)
    free(0.98 * limit)
    assert load(model, dtype="bfloat16", num_kv_blocks=4).info.num_blocks == 4
    free(0.95 * limit)
    refusal(model, monkeypatch, num_kv_blocks=4)


def test_a_cache_that_is_too_large_is_named_with_the_size_that_fits(model, free, monkeypatch):
    free(GIB)
    text = refusal(model, monkeypatch, kv_cache_memory=2.0)
    assert "KV cache 2)" in text
    size = float(text.rpartition("It fits with --kv-cache-memory ")[2].partition(",")[0])
    assert 0.7 < size < 0.75  # steps need memory, too
    assert load(model, dtype="bfloat16", kv_cache_memory=size).info.num_blocks > 100


def test_what_can_be_swapped_out_counts_for_a_refusal_alone(model, monkeypatch):
    asked = []

    def available(_, *, with_swap=False):
        asked.append(with_swap)
        return GIB if with_swap else 0

    monkeypatch.setattr(device, "available_bytes", available)
    assert load(model, dtype="bfloat16").info.num_blocks == 1
    assert asked[0]
    assert not any(asked[1:])

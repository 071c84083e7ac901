"""The engine alone: what its settings are without flags, and what its use of the machine is counted by."""

import json

import pytest

from benchmarks import offline
from engine.build import load_engine
from engine.config import EngineConfig
from tests.support import tiny


def test_settings_are_the_servers_own():
    assert offline.OPTIONS["quantization"] == EngineConfig().quantization == "auto"
    assert EngineConfig(**offline.OPTIONS) == EngineConfig()


@pytest.mark.parametrize(("quantization", "share"), [("auto", 0.0), ("int8", 1.0), ("int4", 1.0)])
def test_products_in_int8_count_as_half(tmp_path, monkeypatch, capsys, quantization, share):
    """Whatever the flag: a peak of 1e9 flops makes the shares comparable with the engine's own count."""
    folder = tiny.write_llama(tmp_path, hidden_size=64, intermediate_size=64)
    flags = ["--model", str(folder), "--quantization", quantization, "--dtype", "float32", "--kernels", "reference"]
    monkeypatch.setattr("sys.argv", ["offline", *flags, "--batch", "2", "--input-len", "5", "--output-len", "3"])
    monkeypatch.setattr(offline, "peak_flops", lambda _: 1e9)
    monkeypatch.setattr(offline, "read_bandwidth", lambda: 1e9)
    offline.main()
    line = json.loads(capsys.readouterr().out)
    assert line["int8_share"] == share
    assert line["flops_per_second"] == 1e9
    assert line["prompt_mfu"] > 0 < line["decode_mfu"]


def test_blocks_with_inputs_in_floats_are_not_in_int8(tmp_path):
    folder = tiny.write_llama(tmp_path, hidden_size=64, intermediate_size=64)
    config = EngineConfig(model=folder, quantization="int4", device="cpu", kernels="reference", num_kv_blocks=4)
    for activations, share in (("int8", 1.0), ("float", 0.0)):
        engine = load_engine(config.model_copy(update={"activations": activations}))
        assert engine.executor.runner.model.int8_share == share

"""What a load takes: the weights are what was estimated, and the peak is the weights and one tensor."""

from pathlib import Path

import pytest
import torch

from engine.loading import random_checkpoint
from engine.loading.presets import PRESETS
from tests.support import load_memory

DENSE = {"vocab_size": 16000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3}
MOE = {**DENSE, "moe_intermediate_size": 512, "n_routed_experts": 16}
CASES = {
    "dense": ("llm-7b", {}, {}),
    "dense, tied": ("llm-7b", {"tie_word_embeddings": True}, {}),
    "dense from fp32": ("llm-7b", {"dtype": torch.float32}, {}),
    "dense in int8": ("llm-7b", {}, {"quantization": "int8"}),
    "mixture": ("v2-lite", {}, {}),
    "mixture in int8": ("v2-lite", {}, {"quantization": "int8"}),
    "mixture by torch": ("v2-lite", {}, {"kernels": "torch"}),
    "mixture of FP8": ("v3", {"fp8": True}, {"quantization": "none"}),
}


@pytest.fixture(scope="module")
def measured(tiny_llama, tmp_path_factory):
    """All cases, in one process."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}
    loads = []
    for like, changes, settings in CASES.values():
        options = {"dtype": torch.bfloat16, "fp8": False, **changes}
        kind = {key: options.pop(key) for key in ("dtype", "fp8")}
        name = f"{like}-{len(options)}-{kind}"
        if name not in made:
            made[name] = folder / str(len(made))
            config = {**PRESETS[like], **(DENSE if like == "llm-7b" else MOE), **options}
            random_checkpoint.write(made[name], config, seed=0, progress=False, **kind)
        loads.append({"dtype": "bfloat16", "model": made[name], **settings})
    return dict(zip(CASES, load_memory.measure(tiny_llama, *loads), strict=True))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_a_load_takes_what_was_estimated_and_one_tensor_more(measured, case):
    found = measured[case]
    assert found.estimated == pytest.approx(found.weights, rel=0.05)
    assert found.peak < found.weights + found.passing + 80e6  # of which the C library keeps 64 MiB (engine.memory)

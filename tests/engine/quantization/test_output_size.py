"""The size of a quantised checkpoint as it is estimated, against what is written."""

import pytest

from engine.config import EngineConfig
from engine.loading.resolve import resolve_model
from engine.quantization.output_size import output_size
from engine.quantization.quantize import quantize
from engine.quantization.quantize_blocks import SCHEMES
from engine.quantization.scheme_bits import Bits
from engine.resolve import resolve
from tests.support import checkpoints, tiny_deepseek
from tests.support.int8 import PROMPTS


@pytest.fixture
def model(request, tmp_path, tiny_llama, make_deepseek):
    folder = tmp_path / "model"
    match request.param:
        case "tied":
            checkpoints.copy(tiny_llama, folder, tie_word_embeddings=True)
            checkpoints.edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
        case "fp8":
            tiny_deepseek.quantize_fp8(make_deepseek("v3"), folder, tmp_path / "twin")
        case name:
            return make_deepseek(name)
    return folder


@pytest.mark.parametrize(
    ("model", "scheme", "bits"),
    [
        ("v2-lite", "w8a8-dynamic", Bits()),
        ("fp8", "w4a8", Bits(4.5)),
        ("tied", "w4a8", Bits(8.5)),
        ("tied", "w4a16", Bits(10.0, 16)),
    ],
    indirect=["model"],
)
def test_an_estimate_is_near_what_is_written(tmp_path, model, scheme, bits):
    source = resolve_model(str(model))
    resolved = resolve(EngineConfig(device="cpu"), source)
    tensors = source.open_tensors(resolved.model)
    estimated = output_size(resolved.model, tensors, resolved.dtype, bits if scheme in SCHEMES else None)
    (tmp_path / "out").mkdir()
    written, _ = quantize(source, tmp_path / "out", scheme, PROMPTS, bits=bits, progress=False)
    assert 0.95 * written < estimated < 1.15 * written

"""GGUF files: the same model as the folder they were made from, and whatever is wrong with one said in a ModelError."""

import math
import random

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from engine.errors import ModelError
from engine.loading.gguf_file import GGUFFile
from engine.loading.resolve import resolve_model
from engine.models import hf_config
from engine.models.config import ModelConfig
from tests import tiny
from tests.engine.gguf_writer import write_gguf
from tests.engine.running import assert_parity, load, make_prompt
from tests.engine.test_models import ROPES


@pytest.fixture(scope="module")
def model_gguf(tiny_llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_llama, path)
    return path


def header_size(path) -> int:
    return min(tensor.offset for tensor in GGUFFile(path).tensors.values())


@pytest.mark.parametrize(
    "kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1], ids=lambda k: k.name
)
def test_stored_numbers_of_every_kind_give_parity_with_transformers(tiny_llama, tmp_path, kind):
    stored = write_gguf(tiny_llama, tmp_path / "model.gguf", kind)
    reference = tiny.reference(tiny_llama)
    reference.load_state_dict(stored, strict=True)
    assert_parity(load(tmp_path / "model.gguf"), reference, make_prompt(37), 32)


@pytest.mark.parametrize(
    "config",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4, "head_dim": 32},
        {"mlp_bias": True},
        {"attention_bias": True, "num_key_value_heads": 4},
        {"attention_bias": True},
    ],
    ids=str,
)
def test_parity_with_transformers(make_llama, tmp_path, config):
    folder = make_llama(**config)
    write_gguf(folder, tmp_path / "model.gguf")
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(37), 32)


def test_a_tied_head_is_the_embedding(make_llama, tmp_path):
    folder = make_llama(tie_word_embeddings=True)
    stored = write_gguf(folder, tmp_path / "model.gguf")
    assert "lm_head.weight" not in stored
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(37), 32)


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("linear", {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 3.0}),
        (
            "yarn",
            {
                "llama__rope__scaling__type": "yarn",
                "llama__rope__scaling__factor": 4.0,
                "llama__rope__scaling__original_context_length": 128,
            },
        ),
    ],
)
def test_rope_scaling_of_the_metadata(make_llama, tmp_path, name, metadata):
    folder = make_llama(rope_parameters=ROPES[name])
    write_gguf(folder, tmp_path / "model.gguf", **metadata)
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(201), 16)


def test_llama3_rope_scaling_as_ready_made_factors(make_llama, tmp_path):
    rope = ROPES["llama3"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, 16, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / 16)
        smooth = (rope["original_max_position_embeddings"] / wavelength - low) / (high - low)
        smooth = min(1.0, max(0.0, smooth))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    assert 1.0 in factors
    assert 8.0 in factors
    folder = make_llama(rope_parameters=rope)
    write_gguf(folder, tmp_path / "model.gguf", extra={"rope_freqs.weight": np.array(factors, dtype=np.float32)})
    assert_parity(load(tmp_path / "model.gguf"), tiny.reference(folder), make_prompt(201), 16)


def test_the_config_is_the_folder_s(tiny_llama, model_gguf):
    source = resolve_model(str(model_gguf))
    assert (source.name, source.is_gguf) == ("tiny", True)
    ours, theirs = source.read_config(), hf_config.read_folder(tiny_llama)
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)
    for name in ModelConfig.__dataclass_fields__.keys() - {"rms_norm_eps", "dtype"}:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_end_of_turn_tokens_end_a_sequence_too(tiny_llama, tmp_path):
    write_gguf(tiny_llama, tmp_path / "model.gguf", tokenizer__ggml__eot_token_id=5)
    assert resolve_model(str(tmp_path / "model.gguf")).read_config().eos_token_ids == (257, 5)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__architecture": "qwen2"}, "architecture 'qwen2' is not supported yet"),
        ({"llama__expert_count": 8}, "experts"),
        ({"llama__block_count": None}, r"lacks '(llama\.)?block_count'"),
        ({"tokenizer__ggml__tokens": None}, "lacks 'tokenizer.ggml.tokens'"),
        ({"llama__attention__head_count_kv": 3}, "is not a multiple of num_key_value_heads"),
        ({"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0}, "'longrope' is not support"),
        ({"llama__rope__scaling__type": "linear"}, r"lacks '(llama\.)?rope\.scaling\.factor'"),
        ({"llama__attention__key_length": 15}, "15 dimensions rotate"),
        ({"llama__block_count": 4}, r"missing: model\.layers\.3\."),
        ({"llama__block_count": 2}, r"unexpected: model\.layers\.2\."),
        (
            {"llama__feed_forward_length": 100},
            r"misshapen: .*mlp\.down_proj\.weight is \[64, 96\], expected \[64, 100\]",
        ),
        ({"llama__attention__head_count": 16}, r"misshapen: .*q_proj\.weight is \[64, 64\], expected \[256, 64\]"),
        ({"llama__attention__head_count": 24}, r"misshapen: .*q_proj\.weight is \[64, 64\], expected \[384, 64\]"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(tiny_llama, tmp_path, metadata, message):
    write_gguf(tiny_llama, tmp_path / "model.gguf", **metadata)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "model.gguf")


def test_a_tensor_of_an_unknown_name_is_unexpected(tiny_llama, tmp_path):
    write_gguf(tiny_llama, tmp_path / "model.gguf", extra={"blk.0.mystery.weight": np.zeros(3, dtype=np.float32)})
    with pytest.raises(ModelError, match=r"unexpected: blk\.0\.mystery\.weight"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"GG", "is not a GGUF file"),
        (b"PK\x03\x04 a zip", "is not a GGUF file"),
        (b"GGUF", "damaged or cut short"),
        (b"GGUF\x01\0\0\0" + bytes(16), "version 1; versions 2 and 3"),
        (b"GGUF\0\0\0\x03" + bytes(16), "version 50331648"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\xff" * 8, "damaged or cut short"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 8 + bytes(8), "damaged or cut short"),
    ],
    ids=["empty", "two bytes", "zip", "magic only", "version 1", "big-endian", "endless keys", "endless tensors"],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content, message):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "model.gguf")


def test_a_header_cut_short_anywhere_is_refused(model_gguf, tmp_path):
    whole, cut = model_gguf.read_bytes(), tmp_path / "cut.gguf"
    end = max(whole.rfind(name.encode()) for name in ("output.weight", "model.norm", "blk.2.ffn_up.weight"))
    places = sorted({*range(4, 400), *range(400, end, 61), *range(end - 100, end)})
    for place in places:
        cut.write_bytes(whole[:place])
        with pytest.raises(ModelError, match="damaged or cut short"):
            GGUFFile(cut)


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_tensors_cut_short_are_refused(model_gguf, tmp_path, left):
    whole, cut = model_gguf.read_bytes(), tmp_path / "cut.gguf"
    last = max(GGUFFile(model_gguf).tensors.values(), key=lambda tensor: tensor.offset)
    size = 4 * math.prod(last.shape)
    cut.write_bytes(whole[: last.offset + (left if left >= 0 else size + left)])
    with pytest.raises(ModelError, match=r"cut short: .* runs past its end"):
        load(cut)


def test_flipped_bytes_in_the_header_raise_nothing_but_model_errors(model_gguf, tmp_path):
    rng, whole = random.Random(0), model_gguf.read_bytes()
    size, refused = header_size(model_gguf), 0
    for round_ in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            # half of the flips hit the keys before the vocabulary, which is most of the header
            damaged[rng.randrange(4, 700 if round_ % 2 else size)] = rng.choice([0, 1, 7, 9, 255, rng.randrange(256)])
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        try:
            resolve_model(str(path)).read_config()
        except ModelError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__alignment": 0}, "damaged"),
        ({"general__alignment": "32"}, "damaged"),
        ({"llama__attention__head_count": 0}, "head_count"),
        ({"llama__attention__head_count_kv": 0}, "head_count_kv|num_key_value_heads"),
        ({"llama__attention__head_count": [4, 4, 4]}, "head_count"),
        ({"llama__embedding_length": "64"}, "embedding_length"),
        ({"tokenizer__ggml__tokens": 5}, "tokenizer.ggml.tokens"),
    ],
    ids=str,
)
def test_metadata_of_a_wrong_kind_or_of_zero_is_refused(tiny_llama, tmp_path, metadata, message):
    write_gguf(tiny_llama, tmp_path / "model.gguf", **metadata)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "model.gguf")


def test_arrays_within_arrays_without_end_are_refused(tmp_path):
    nested = b"".join([(9).to_bytes(4, "little"), (1).to_bytes(8, "little")] * 5000)
    key = (1).to_bytes(8, "little") + b"k"
    header = b"GGUF\x03\0\0\0" + bytes(8) + (1).to_bytes(8, "little")
    (tmp_path / "model.gguf").write_bytes(header + key + (9).to_bytes(4, "little") + nested)
    with pytest.raises(ModelError, match="damaged"):
        GGUFFile(tmp_path / "model.gguf")


def test_a_tensor_of_an_unknown_type_is_refused(model_gguf, tmp_path):
    damaged = bytearray(model_gguf.read_bytes())
    name = b"output_norm.weight"
    where = damaged.rfind(name) + len(name) + 4 + 8  # its number of dimensions, its one dimension, then its type
    assert int.from_bytes(damaged[where : where + 4], "little") == Kind.F32
    damaged[where : where + 4] = (222).to_bytes(4, "little")
    (tmp_path / "model.gguf").write_bytes(damaged)
    with pytest.raises(ModelError, match=r"norm\.weight has GGML type 222"):
        load(tmp_path / "model.gguf")

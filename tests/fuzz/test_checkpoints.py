"""Damaged checkpoints: each loads, or is refused with a ModelError, in bounded time and memory."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError, ModelError
from engine.loading.gguf_file import GGUFFile
from engine.loading.gguf_source import GGUFSource
from engine.loading.resolve import ModelSource
from engine.loading.safetensors_source import SafetensorsSource
from engine.models import gguf_config, registry
from server.text.tokenizer import Tokenizer
from tests.fuzz.values import FUZZ, damaged, mutated, values
from tests.support.gguf_writer import write_gguf
from tests.support.running import generate, greedy_params, load

if TYPE_CHECKING:
    from pathlib import Path

V3_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 4,
    "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5, "index_topk": 64,
    "index_n_heads": 2, "index_head_dim": 16, "dtype": "bfloat16", "eos_token_id": [1, 2], "bos_token_id": 0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
DYNAMIC_MOE_CONFIG: dict[str, Any] = {
    "architectures": ["DynamicMoEForCausalLM"], "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "attention_types": ["full", "local", "block_sparse"], "local_window": 20, "sparse_block_size": 16,
    "sparse_num_global_blocks": 1, "sparse_num_local_blocks": 2, "sparse_num_random_blocks": 3, "sparse_seed": 7,
    "moe_num_experts": 8, "moe_top_k": 2, "moe_intermediate_size": 32, "router_hidden_size": 40,
    "norm_topk_prob": True, "expert_capacity": 1.25, "hidden_dropout": 0.1, "attention_dropout": 0,
    "memory_compression_ratio": 0.4, "memory_compression_layers": [0, 2], "num_modalities": 3,
    "task_heads": {"classification": {"labels": ["a", "b"]}, "reasoning": {}},
}  # fmt: skip
REFUSED = (ModelError, ConfigError)


@FUZZ
@given(damaged(V3_CONFIG) | damaged(DYNAMIC_MOE_CONFIG), damaged({"eos_token_id": [1], "temperature": 0.5}))
def test_a_config_is_read_or_refused(config: Any, generation: Any) -> None:
    with contextlib.suppress(ModelError):
        registry.parse(config, generation)


@pytest.fixture(scope="module")
def place(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny Llama; a test changes one file at a time and puts it back."""
    return shutil.copytree(tiny_llama, tmp_path_factory.mktemp("fuzz") / "model")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_llama, path)
    return path


@contextlib.contextmanager
def file_with(path: Path, content: bytes) -> Any:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@FUZZ
@given(st.data())
def test_a_damaged_config_file_is_served_or_refused(place: Path, data: st.DataObject) -> None:
    config = json.loads((place / "config.json").read_bytes())
    content = data.draw(damaged(config).map(as_json) | mutated(as_json(config)))
    with file_with(place / "config.json", content), contextlib.suppress(*REFUSED):
        engine = load(place, num_kv_blocks=8)
        generate(engine, [[1, 2, 3]], greedy_params(2))


@FUZZ
@given(st.data())
def test_a_damaged_safetensors_header_is_served_or_refused(place: Path, data: st.DataObject) -> None:
    whole = (place / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    new = data.draw(damaged(header).map(as_json) | mutated(whole[8 : 8 + size]))
    length = data.draw(st.just(len(new)) | st.sampled_from([0, 1, 1 << 20, 1 << 40, (1 << 64) - 1]))
    content = length.to_bytes(8, "little") + new + whole[8 + size :]
    with file_with(place / "model.safetensors", content), contextlib.suppress(ModelError):
        source = SafetensorsSource(place)
        for name in source.names():
            source.read(name)


@FUZZ
@given(st.data())
def test_damaged_weights_are_served_or_refused(place: Path, data: st.DataObject) -> None:
    whole = (place / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    new = as_json(data.draw(damaged(header)))
    content = len(new).to_bytes(8, "little") + new + whole[8 + size :]
    with file_with(place / "model.safetensors", content), contextlib.suppress(*REFUSED):
        load(place, num_kv_blocks=8)


@FUZZ
@given(st.data())
def test_a_damaged_gguf_file_is_served_or_refused(tiny_gguf: Path, place: Path, data: st.DataObject) -> None:
    whole = tiny_gguf.read_bytes()
    head = GGUFFile(tiny_gguf).tensors
    end = min(tensor.offset for tensor in head.values())
    (place / "model.gguf").write_bytes(data.draw(mutated(whole[:end])) + whole[end:])
    with contextlib.suppress(ModelError):
        file = GGUFFile(place / "model.gguf")
        config = gguf_config.parse(file.metadata, frozenset(file.tensors))
        source = GGUFSource([file], config)
        for name in source.names():
            source.read(name)
    with contextlib.suppress(ModelError):
        Tokenizer.load(ModelSource(place / "model.gguf", "x"))


def check_tokenizer(place: Path) -> None:
    """It is refused, or reads and writes any text."""
    try:
        tokenizer = Tokenizer.load(ModelSource(place, "x"))
    except ModelError:
        return
    ids = tokenizer.encode("Hello, \u00e9\U0001f642!")
    tokenizer.decode(ids[:100])


@FUZZ
@given(st.data())
def test_a_damaged_tokenizer_is_served_or_refused(place: Path, data: st.DataObject) -> None:
    tree = json.loads((place / "tokenizer.json").read_bytes())
    tree["model"]["vocab"] = dict(list(tree["model"]["vocab"].items()))
    content = data.draw(damaged(tree).map(as_json) | mutated(as_json(tree)))
    with file_with(place / "tokenizer.json", content):
        check_tokenizer(place)


@FUZZ
@given(st.data())
def test_a_damaged_tokenizer_config_is_served_or_refused(place: Path, data: st.DataObject) -> None:
    tree = json.loads((place / "tokenizer_config.json").read_bytes()) | {"add_bos_token": True}
    content = data.draw(damaged(tree).map(as_json) | mutated(as_json(tree)) | values.map(as_json))
    with file_with(place / "tokenizer_config.json", content):
        check_tokenizer(place)

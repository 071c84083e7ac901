"""quantization_config of compressed-tensors: what is read, what is refused, and which layers a target names."""

import json
import re

import pytest

from engine.errors import ModelError
from engine.models.int8_scheme import Int8Scheme
from engine.models.quantization_config import read_quantization

GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
}
CONFIG = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": GROUP}}
W, X = ("config_groups", "group_0", "weights"), ("config_groups", "group_0", "input_activations")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "naive-quantized", "has format 'naive-quantized'"),
        (("config_groups",), {}, "no config_groups"),
        (("config_groups",), {"g": 3}, "expected an object"),
        (("kv_cache_scheme",), {"num_bits": 8}, "has a kv_cache_scheme"),
        (("sparsity_config",), {"format": "sparse-24-bitmask"}, "sparse weights"),
        (("ignore",), "lm_head", "expected a list of names"),
        (("ignore",), ["re:("], "no regular expression"),
        ((*W, "num_bits"), 4, "has weights"),
        ((*W, "type"), "float", "has weights"),
        ((*W, "symmetric"), False, "has weights"),
        ((*W, "strategy"), "group", "has weights"),
        ((*X, "num_bits"), 4, "has input_activations"),
        ((*X, "strategy"), "tensor", "has input_activations"),
        ((*X, "type"), "float", "has input_activations"),
    ],
)
def test_other_formats_are_refused_by_name(path, value, message):
    config = json.loads(json.dumps(CONFIG))
    assert read_quantization({"quantization_config": config})["int8"].groups == (("dynamic", ("Linear",)),)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ModelError, match=re.escape(message)):
        read_quantization({"quantization_config": config})


def test_targets_match_as_compressed_tensors_has_it():
    scheme = Int8Scheme(
        (("dynamic", ("Linear",)), ("static", ("a.b", r"re:x\.\d+\.y$")), ("float", ("a.c",))),
        ("lm_head", "re:.*gate$"),
    )
    expected = {"a.b": "static", "a.c": "float", "x.12.y": "static", "x.12.yy": "dynamic", "lm_head": None,
                "m.gate": None, "other": "dynamic"}  # fmt: skip
    assert {name: scheme.input_kind(name) for name in expected} == expected
    assert Int8Scheme.from_config(scheme.to_config()) == scheme

"""Tensors of compressed-tensors' pack-quantized, read back by the rule of its format."""

import pytest
import torch

from engine.quantization import packing
from kernels.quantized_weight import Input


def unpack(packed_OP, bits, in_size):
    """What compressed_tensors.compressors.pack_quantized does: value i of a row is in bits i * `bits` and those behind.

    The smallest value is stored as 0.
    """
    per_int = 32 // bits
    values_OI = torch.empty(len(packed_OP), packed_OP.shape[1] * per_int, dtype=torch.int64)
    for i in range(per_int):
        values_OI[:, i::per_int] = (packed_OP.long() >> (bits * i)) & (2**bits - 1)
    return values_OI[:, :in_size] - 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_values_can_be_read_back(bits):
    generator = torch.Generator().manual_seed(0)
    codes_OI = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 64), generator=generator)
    scale_OG = packing.storable(torch.randn(5, 2, generator=generator))
    weight = packing.to_blocks(codes_OI.float(), scale_OG, bits, Input.DYNAMIC)
    expected = codes_OI.float() * scale_OG.repeat_interleave(32, 1)
    assert torch.equal(weight.dequantize(torch.float32), expected)
    stored = dict(packing.pack("a.b", weight))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == {
        "a.b.weight_packed": (torch.int32, (5, 64 * bits // 32)),
        "a.b.weight_scale": (torch.bfloat16, (5, 2)),
        "a.b.weight_shape": (torch.int64, (2,)),
    }
    assert torch.equal(unpack(stored["a.b.weight_packed"], bits, 64), codes_OI)
    assert torch.equal(stored["a.b.weight_scale"].float(), scale_OG)
    assert stored["a.b.weight_shape"].tolist() == [5, 64]


def test_a_scheme_says_what_compressed_tensors_expects():
    config = packing.to_config({4: ["a", "b"], 8: ["lm_head"]}, ["c"], int8_inputs=True)
    few, many = config["config_groups"]["group_0"], config["config_groups"]["group_1"]
    assert (few["targets"], many["targets"], config["ignore"]) == (["a", "b"], ["lm_head"], ["c"])
    assert (few["weights"]["num_bits"], many["weights"]["num_bits"], few["weights"]["group_size"]) == (4, 8, 32)
    assert few["input_activations"]["dynamic"] is few["input_activations"]["symmetric"] is True
    floats = packing.to_config({4: ["a"], 8: []}, [], int8_inputs=False)
    assert list(floats["config_groups"]) == ["group_0"]
    assert floats["config_groups"]["group_0"]["input_activations"] is None

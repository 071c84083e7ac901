import pytest
import torch

from kernels import native, round_to_blocks
from tests.kernels.compare import DTYPES, dtype_id, natives, randn

VERSIONS = natives(round_to_blocks.native.round_to_blocks)
SHAPES = [(1, 32), (17, 96), (35, 70)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
@pytest.mark.parametrize("version", VERSIONS)
def test_blocks_are_those_of_the_reference_up_to_ties(version, name, dtype, shape):
    weight_OI = randn(*shape, dtype=dtype)
    importance_I = torch.rand(shape[1], generator=torch.Generator().manual_seed(1)) if name == "q4_0" else None
    made = VERSIONS[version](weight_OI, name, importance_I)
    expected = round_to_blocks.reference.round_to_blocks(weight_OI, name, importance_I)
    assert made.shape == expected.shape == weight_OI.shape
    different = (made.rows_OB != expected.rows_OB).float().mean()
    assert different < 0.02  # sums in another order choose another of two scales that are as good
    error = [float((part.dequantize(torch.float32) - weight_OI.float()).norm()) for part in (made, expected)]
    assert error[0] == pytest.approx(error[1], rel=1e-3)


@pytest.mark.skipif(not VERSIONS, reason="there is no native code here")
@pytest.mark.parametrize(("shape", "size"), [((64,), 64), ((2, 64), 65), ((), 1)], ids=str)
def test_wrong_shapes_are_refused(shape, size):
    with pytest.raises(ValueError, match="must have shape"):
        native.library.round_to_blocks(torch.ones(shape), True, torch.ones(size))


@pytest.mark.parametrize("version", ["reference", *VERSIONS])
class TestEveryVersion:
    @staticmethod
    def kernel(version):
        return round_to_blocks.reference.round_to_blocks if version == "reference" else VERSIONS[version]

    def test_what_a_block_holds_exactly_stays(self, version):
        codes = torch.arange(-8, 8).repeat(2).float()
        kept = torch.stack([codes * 0.25, codes * -0.5, torch.zeros(32)])
        made = self.kernel(version)(kept, "q4_0")
        assert torch.equal(made.dequantize(torch.float32), kept)

    def test_the_search_loses_less_than_the_largest_value_at_an_end(self, version):
        weight_OI = randn(64, 256, dtype=torch.float32)
        largest = weight_OI.unflatten(1, (-1, 32)).abs().amax(2).repeat_interleave(32, 1)
        plain = (weight_OI / largest * 8).round().clamp(-8, 7) * largest / 8
        made = self.kernel(version)(weight_OI, "q4_0").dequantize(torch.float32)
        assert (made - weight_OI).square().mean() < 0.85 * (plain - weight_OI).square().mean()

    def test_inputs_of_importance_lose_less(self, version):
        weight_OI = randn(64, 64, dtype=torch.float32)
        importance_I = torch.ones(64)
        importance_I[::4] = 100
        errors = [
            (self.kernel(version)(weight_OI, "q4_0", given).dequantize(torch.float32) - weight_OI)[:, ::4].norm()
            for given in (importance_I, None)
        ]
        assert errors[0] < 0.9 * errors[1]

    @pytest.mark.parametrize("name", ["q4_0", "q8_0"])
    @pytest.mark.parametrize("value", [1e9, float("inf"), float("nan")])
    def test_what_no_scale_holds_is_refused(self, version, value, name):
        weight_OI = torch.ones(2, 64)
        weight_OI[1, 40] = value
        with pytest.raises(ValueError, match="beyond fp16"):
            self.kernel(version)(weight_OI, name)

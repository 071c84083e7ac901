"""The router's weights where DeepSeek's own code and transformers differ; test_decoder covers what they share."""

from types import SimpleNamespace

import pytest
import torch

from engine.models.layers import Builder
from kernels import native
from kernels.backends import NativeOps
from tests.support import checkpoints
from tests.support.running import load, relative_error


def test_norm_topk_prob_of_a_softmax_router_renormalises_instead_of_scaling(make_deepseek, tmp_path):
    """DeepSeek's V2 code does one or the other; transformers' V2 ignores norm_topk_prob and always scales."""
    folder, routers = make_deepseek("v2-lite, scaled"), []
    for norm in (False, True):
        engine = load(checkpoints.copy(folder, tmp_path / str(norm), norm_topk_prob=norm))
        routers.append(engine.executor.runner.model._layers[1]._mlp._router)
    x = torch.randn(5, 64)
    (ids, scaled), (same_ids, renormalised) = (router.forward(x) for router in routers)
    assert torch.equal(ids, same_ids)
    torch.testing.assert_close(renormalised.sum(-1), torch.ones(5))
    torch.testing.assert_close(scaled / scaled.sum(-1, keepdim=True), renormalised)
    assert relative_error(scaled, renormalised) > 0.1


@pytest.mark.skipif(native.ISA is None, reason="the native kernels are not built")
@pytest.mark.parametrize("is_exact", [True, False], ids=["bf16 weights", "fp32 weights"])
def test_logits_of_bf16_inputs_are_fp32(is_exact):
    """Whether the weights are multiplied in bf16, which they may be in the checkpoint, or in fp32."""
    weight, bias = torch.randn(5, 300), torch.randn(5)
    if is_exact:
        weight = weight.bfloat16().float()
    x = torch.randn(9, 300).bfloat16()
    builder = SimpleNamespace(weights=SimpleNamespace(dtype=torch.bfloat16), ops=NativeOps(torch.bfloat16))
    y = Builder.fp32_linear(builder, weight, bias)(x)
    expected = x.double() @ weight.double().T + bias.double()
    assert (y.double() - expected).abs().max() < 1e-4

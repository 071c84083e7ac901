"""The router's weights where DeepSeek's own code and transformers differ; test_decoder covers what they share."""

import torch

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

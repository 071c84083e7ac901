"""Division over the tensor axis: attention by heads, experts by whole experts (expert parallelism), tables by tokens.

Every rank of the axis computes all tokens of a micro batch, with its heads and its experts, and adds its part to the
others'. Norms, routers and compression blocks are on each rank, and get the same gradients on each, so that all ranks
choose the same experts and drop the same tokens. A layer costs four all-reduces of its hidden states: one for
attention and one for the experts, in both directions.

Shapes: N flat tokens, H hidden, K choices of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from typing_extensions import override

from training.parallel.sizes import divides_vocabulary

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from training.model.dynamic_moe import DynamicMoE
    from training.parallel.ranks import Ranks


def divide(model: DynamicMoE, ranks: Ranks) -> None:
    """Leave this rank its heads, experts and tokens. The parameters may be without memory (device "meta")."""
    if ranks.degrees.tensor == 1:
        return
    mesh = ranks.mesh["tensor"]
    styles = _styles_of_tables() if divides_vocabulary(model.config, mesh.size()) else {}
    for layer in model.model.layers:
        styles |= {f"model.layers.{layer}.{name}": style for name, style in _styles_of_layer().items()}
    modules = dict(model.named_modules())
    here = {name: style for name, style in styles.items() if name in modules}
    parallelize_module(model, mesh, here, src_data_rank=None)  # each rank has all values, and keeps its own


def divided_names(model: DynamicMoE, ranks: Ranks) -> frozenset[str]:
    """The parameters of a divided model that differ between ranks of the axis."""
    if ranks.degrees.tensor == 1:
        return frozenset()
    parameters = model.named_parameters()
    return frozenset(name for name, value in parameters if isinstance(value, DTensor) or ".experts." in name)


def _styles_of_tables() -> dict[str, ParallelStyle]:
    """Each rank has some tokens' rows; training.model.vocabulary computes with them."""
    return {"model.embed_tokens": RowwiseParallel(), "lm_head": ColwiseParallel()}


def _styles_of_layer() -> dict[str, ParallelStyle]:
    replicated = (Replicate(), None)
    return {
        "self_attn": PrepareModuleInput(input_layouts=replicated, desired_input_layouts=replicated),
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.experts": ExpertParallel(),
    }


class ExpertParallel(ParallelStyle):
    """Whole experts on each rank, the first ones on the first. Experts keep their numbers, and so their names."""

    @override
    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.ModuleDict)
        numbers = list(module)
        count = len(numbers) // device_mesh.size()
        first = device_mesh.get_local_rank() * count
        for number in numbers[:first] + numbers[first + count :]:
            del module[number]
        module.register_forward_pre_hook(lambda _, inputs: _share_inputs(inputs, device_mesh))
        module.register_forward_hook(lambda _, __, y_NH: _add_outputs(y_NH, device_mesh))
        return module


def _share_inputs(inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    """x_NH and weights_NK as they are; a rank's gradients of them are a part, and the parts are summed."""
    x_NH, weights_NK, *rest = inputs
    shared = (DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in (x_NH, weights_NK))
    return (*(x.to_local(grad_placements=[Partial()]) for x in shared), *rest)


def _add_outputs(y_NH: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """The sum of the ranks' parts, on each rank."""
    parts = DTensor.from_local(y_NH, mesh, [Partial()], run_check=False)
    whole: torch.Tensor = parts.redistribute(placements=[Replicate()]).to_local()
    return whole

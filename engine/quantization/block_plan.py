"""How many bits the weights of each layer get, 4 or more, by the error that 4 bits cause on calibration text.

Layers whose error is largest for their size get more, as many as a stated average of bits allows.

Shapes: T tokens of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.quantization.layer_names import expert_parts, naming
from engine.quantization.packing import GROUP
from engine.quantization.progress import shown
from engine.quantization.walk import LayerWalk
from kernels.round_to_blocks import round_to_blocks

if TYPE_CHECKING:
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from engine.quantization.scheme_bits import Bits
    from engine.quantization.walk import WatchedLayer

_MAX_MEASURED_ROWS = 256  # of one site's inputs, evenly spaced


@dataclass(frozen=True)
class Site:
    """Layers that get the same number of bits: those that read the same input; all experts of a decoder layer.

    Servers compute such layers in one product, of one format.

    Attributes:
        num_weights: of all these layers.
        error: the change of the hidden states behind the decoder layer if each weight is rounded to 4 bits, about:
            |error|^2 / |output|^2 of the outputs, times the share that attention or the MLP has in the hidden states.
    """

    layers: tuple[str, ...]
    num_weights: int
    error: float


def measure(
    tensors: TensorSource, config: ModelConfig, prompts: list[list[int]], dtype: torch.dtype, *, progress: bool
) -> list[Site]:
    """Measure every layer that can be quantised."""
    walk, sites = LayerWalk(tensors, config, prompts, dtype), []
    numbers = range(config.num_hidden_layers)
    for number in shown(numbers, "measuring", "layer", len(numbers), progress=progress):
        found: dict[str, list[WatchedLayer]] = {}
        before = walk.hidden_states
        for item in walk.advance(number):
            if item.weight_OI.shape[1] % GROUP == 0:
                found.setdefault(site_of(item.layers[0]), []).append(item)
        attention, mlp = _shares(before, walk.hidden_states, walk.last_outputs)
        sites += [_measure(items, mlp if ".mlp." in name else attention) for name, items in found.items()]
    return sites


def choose(sites: list[Site], wanted: Bits) -> dict[str, int]:
    """The bits of each layer, 4 or wide; wide ones as far as the average over all weights allows."""
    total = sum(site.num_weights for site in sites)
    budget = wanted.wide_share(total) * total
    bits: dict[str, int] = {}
    for site in sorted(sites, key=lambda site: site.error / site.num_weights, reverse=True):
        fits = site.num_weights <= budget
        budget -= site.num_weights if fits else 0
        bits.update(dict.fromkeys(site.layers, wanted.wide if fits else 4))
    return bits


def site_of(layer: str) -> str:
    """The name of a layer's site: the layer's own, or what all experts of a decoder layer have in common."""
    parts = expert_parts(layer)
    return layer if parts is None else parts[0]


def _shares(
    before: list[torch.Tensor], after: list[torch.Tensor], outputs: list[torch.Tensor] | None
) -> tuple[float, float]:
    """|y|^2 / |h|^2, mean over tokens, of outputs y of attention and of the MLP; h: the hidden states behind both."""
    if outputs is None:
        return 1.0, 1.0
    h_TH, y_TH = torch.cat(after), torch.cat(outputs).float()
    size_T = h_TH.square().sum(1).clamp(min=1e-20)
    attention_TH = h_TH - y_TH - torch.cat(before)
    return float((attention_TH.square().sum(1) / size_T).mean()), float((y_TH.square().sum(1) / size_T).mean())


@torch.inference_mode()
def _measure(items: list[WatchedLayer], share: float) -> Site:
    layers = tuple(layer for item in items for layer in item.layers)
    used = [item for item in items if any(map(len, item.inputs))]
    errors = [_errors(item, max(1, _MAX_MEASURED_ROWS // len(used))) for item in used]
    error = share * float(torch.cat(errors).mean()) if errors else 0.0
    return Site(layers, sum(item.weight_OI.numel() for item in items), error)


def _errors(item: WatchedLayer, num_rows: int) -> torch.Tensor:
    """|error|^2 / |output|^2 of some tokens' outputs."""
    x_TI = torch.cat(item.inputs)
    x_TI = x_TI[torch.linspace(0, len(x_TI) - 1, min(len(x_TI), num_rows)).long()].float()
    weight_OI = item.weight_OI.float()
    y_TO = x_TI @ weight_OI.T
    with naming(item.layers):
        made = round_to_blocks(weight_OI, "q4_0")
    error_TO = x_TI @ made.dequantize(torch.float32).T - y_TO
    return (error_TO.square().sum(1) / y_TO.square().sum(1).clamp(min=1e-20)).clamp(max=1.0)

"""Makes a checkpoint of 4- and 8-bit weights: measures, plans, then quantises layer by layer, and writes as it goes.

The text runs through the layers as they were quantised, so that each layer makes up for the errors of those before it.
One decoder layer is in memory at a time.

Shapes: T tokens of the text, O rows, I inputs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import ModelError
from engine.loading.shards import ShardWriter
from engine.quantization import block_plan, gptq, original, packing
from engine.quantization.layer_names import NEVER_QUANTIZED, expert_parts, naming, targets_of
from engine.quantization.progress import shown
from engine.quantization.walk import LayerWalk
from kernels.quantized_weight import Input

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.loading.resolve import ModelSource
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from engine.quantization.scheme_bits import Bits
    from engine.quantization.walk import WatchedLayer
    from kernels.block_weight import BlockWeight

_INPUTS = {"w4a8": Input.DYNAMIC, "w4a16": Input.FLOAT}
SCHEMES = tuple(_INPUTS)
_MEASURED_TOKENS = 4096  # of the text, for the plan
_SHARED_TOKENS = 256  # that the inputs of all experts count for, beside those that one expert gets
_MAX_SHARED_ROWS = 8192
_HEAD = "lm_head"
_AS_IT_IS = 16  # bits of a layer that is not quantised


def quantize_blocks(
    source: ModelSource,
    tensors: TensorSource,
    config: ModelConfig,
    folder: Path,
    scheme: str,
    prompts: list[list[int]],
    dtype: torch.dtype,
    wanted: Bits,
    *,
    progress: bool,
) -> tuple[int, dict[str, float]]:
    """Write the checkpoint into an empty folder.

    Returns:
        The size of all tensors in bytes; of the weights in linear layers, the shares of 4, 8 and 16 bits.

    Raises:
        ModelError: no layer would be quantised.
    """
    settings, input_ = original.read_settings(source, config), _INPUTS[scheme]
    sites = block_plan.measure(tensors, config, _some_of(prompts), dtype, progress=progress)
    bits = block_plan.choose(sites, wanted)
    _check(source, bits)
    shares = _shares(sites, bits)
    kept = [layer for layer in bits if bits[layer] == _AS_IT_IS]
    bits = {layer: number for layer, number in bits.items() if number != _AS_IT_IS}
    with ShardWriter(folder) as shards:
        walk = LayerWalk(tensors, config, prompts, dtype)
        quantized = _quantize_layers(walk, config.num_hidden_layers, bits, input_)
        for layer, weight in shown(quantized, "quantising", "weight", len(bits), progress=progress):
            _add(shards, layer, weight)
        if wanted.wide == 8 and (head_VH := _head(tensors, config)) is not None:
            _add(shards, _HEAD, _to_8_bits(_HEAD, head_VH, input_))
            settings["tie_word_embeddings"], bits[_HEAD] = False, 8
        written = {f"{layer}.weight" for layer in bits}
        for name in sorted(original.tensor_names(tensors) - written):
            shards.add(name, original.read_floats(name, tensors, config, is_gguf=source.is_gguf))
        size = shards.finish()
    settings["quantization_config"] = _scheme(bits, kept, input_)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    original.copy_files(source, folder)
    return size, shares


def _check(source: ModelSource, bits: dict[str, int]) -> None:
    """Refuse a plan in which nothing is quantised."""
    if all(number == _AS_IT_IS for number in bits.values()):
        raise ModelError(
            f"{source.path} has nothing to make int4: no linear layer "
            + ("that --bits leaves in 4 bits" if bits else f"has a multiple of {packing.GROUP} inputs")
        )


def _add(shards: ShardWriter, layer: str, weight: BlockWeight) -> None:
    for name, tensor in packing.pack(layer, weight):
        shards.add(name, tensor)


def _quantize_layers(
    walk: LayerWalk, num_layers: int, bits: dict[str, int], input_: Input
) -> Iterator[tuple[str, BlockWeight]]:
    """The weights of the layers that are quantised."""
    for number in range(num_layers):
        made: dict[str, BlockWeight] = {}
        for layer, weight in _quantize_layer(walk, number, bits, input_):
            yield layer, weight
            made[layer] = weight
        walk.advance(number, made)


@torch.inference_mode()
def _quantize_layer(
    walk: LayerWalk, number: int, bits: dict[str, int], input_: Input
) -> Iterator[tuple[str, BlockWeight]]:
    watched = [item for item in walk.watch(number) if item.layers[0] in bits]
    shared = _shared_hessians(watched)
    while watched:
        item = watched.pop()  # its inputs are no longer needed
        shapes = [(size, item.weight_OI.shape[1]) for size in item.sizes]
        weights = [walk.read(layer, shape) for layer, shape in zip(item.layers, shapes, strict=True)]
        if bits[item.layers[0]] == 8:
            made_8 = (_to_8_bits(layer, part_OI, input_) for layer, part_OI in zip(item.layers, weights, strict=True))
            yield from zip(item.layers, made_8, strict=True)
            continue
        with naming(item.layers):
            made = gptq.to_4_bits(torch.cat(weights), _hessian(item, shared), input_)
        parts = made.rows_OB.split(item.sizes)
        yield from ((layer, replace(made, rows_OB=rows_OB)) for layer, rows_OB in zip(item.layers, parts, strict=True))


def _to_8_bits(layer: str, weight_OI: torch.Tensor, input_: Input) -> BlockWeight:
    with naming([layer]):
        return gptq.to_8_bits(weight_OI, input_)


def _shared_hessians(watched: list[WatchedLayer]) -> dict[str, torch.Tensor]:
    """By site, H of what all experts of a decoder layer read, if they read the same hidden states."""
    inputs: dict[str, list[torch.Tensor]] = {}
    for item in watched:
        if len(item.layers) > 1 and expert_parts(item.layers[0]):
            inputs.setdefault(block_plan.site_of(item.layers[0]), []).extend(item.inputs)
    return {
        site: gptq.hessian([_spread(torch.cat(found), _MAX_SHARED_ROWS)], found[0].shape[1])
        for site, found in inputs.items()
        if found
    }


def _hessian(item: WatchedLayer, shared: dict[str, torch.Tensor]) -> torch.Tensor:
    """H of a layer's inputs; that of an expert leans on other experts' inputs the more, the fewer tokens chose it."""
    in_size, num_tokens = item.weight_OI.shape[1], sum(map(len, item.inputs))
    own_II = gptq.hessian(item.inputs, in_size)
    if expert_parts(item.layers[0]) is None:
        return own_II
    prior_II = torch.eye(in_size) * own_II.diagonal().mean()  # of a down_proj: no input is like another expert's
    if len(item.layers) > 1:
        prior_II = shared.get(block_plan.site_of(item.layers[0]), prior_II)
    share = num_tokens / (num_tokens + _SHARED_TOKENS)
    return share * own_II + (1 - share) * prior_II


def _head(tensors: TensorSource, config: ModelConfig) -> torch.Tensor | None:
    """The weight of the head over the vocabulary, if there is one that can be quantised."""
    if not config.task_heads.generates or config.hidden_size % packing.GROUP:
        return None
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else f"{_HEAD}.weight"
    return original.read_floats(name, tensors, config, is_gguf=False)


def _scheme(bits: dict[str, int], kept: list[str], input_: Input) -> dict[str, Any]:
    """quantization_config of config.json."""
    targets = {number: targets_of(layer for layer in bits if bits[layer] == number) for number in (4, 8)}
    ignore = [name for name in NEVER_QUANTIZED if name not in bits]
    return packing.to_config(targets, [*ignore, *targets_of(kept)], int8_inputs=input_ is Input.DYNAMIC)


def _shares(sites: list[block_plan.Site], bits: dict[str, int]) -> dict[str, float]:
    total = sum(site.num_weights for site in sites) or 1
    return {
        f"{number} bits": sum(site.num_weights for site in sites if bits[site.layers[0]] == number) / total
        for number in (4, 8, _AS_IT_IS)
    }


def _some_of(prompts: list[list[int]]) -> list[list[int]]:
    """Some of the text, of all its parts."""
    return prompts[:: max(1, sum(map(len, prompts)) // _MEASURED_TOKENS)]


def _spread(x_TI: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Rows that are evenly spaced."""
    return x_TI[torch.linspace(0, len(x_TI) - 1, min(len(x_TI), num_rows)).long()]

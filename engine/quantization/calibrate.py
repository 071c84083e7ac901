"""Runs a model over calibration text and measures each linear layer: the range of inputs, the error of int8 outputs.

One decoder layer is loaded at a time. Between layers only the hidden states of the text are kept.

Shapes: T tokens of the text, H hidden.
"""

from __future__ import annotations

import math
import re
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from engine.kv_cache_pool import CacheLayout, KVCachePool
from engine.loading.weights import Weights
from engine.model_batch import ModelBatch
from engine.models import registry
from engine.models.decoder import attention_class, make_rotary_table, plan_attention
from engine.models.layers import Builder
from engine.step import BlockTable, ScheduledSequence, StepPlan
from kernels.linear_int8 import Input, StaticInput, quantize_weight
from kernels.linear_int8 import torch_ops as linear_int8
from kernels.ops import Ops, TorchOps, resolve

if TYPE_CHECKING:
    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from engine.models.rope import RotaryTable
    from kernels.paged_attention import AttentionBatch
    from kernels.types import Linear

_MAX_BATCHED_TOKENS = 2048
_MAX_MEASURED_ROWS = 256  # of one layer's inputs, evenly spaced
_MAX_BLOCK_SIZE = 16
_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(.*)")


@dataclass(frozen=True)
class Measurement:
    """One linear layer as the model computes it.

    Attributes:
        layers: the checkpoint's layers that are stacked in it, because they read the same input. For routed experts,
            the layers of all experts of a decoder layer, so that an expert that no token chose has a range too.
        cost: multiplications for each token.
        grid: the static grid over the range of inputs.
        static_error, dynamic_error: |error|^2 / |output|^2 of the outputs, mean over tokens.
    """

    layers: tuple[str, ...]
    cost: float
    grid: StaticInput
    static_error: float
    dynamic_error: float


@dataclass
class _WatchedLayer:
    """One packed weight, and its inputs so far."""

    layers: tuple[str, ...]
    weight_OI: torch.Tensor
    inputs: list[torch.Tensor] = field(default_factory=list)


def calibrate(
    tensors: TensorSource, config: ModelConfig, prompts: list[list[int]], dtype: torch.dtype, *, progress: bool
) -> list[Measurement]:
    """Measure every linear layer that can be int8; each prompt is one sequence, computed in this dtype.

    Raises:
        ModelError: tensors are missing or do not fit the config.
    """
    device = torch.device("cpu")
    weights = _WatchedWeights(tensors, config, device, dtype)
    ops = _watching(resolve("auto", device, dtype), weights, dtype)
    build = Builder(config, weights, ops)
    model = registry.model_class(config)
    embedding = model.embedding_class(build)
    planner = _Planner(config, ops, make_rotary_table(config, weights, max(map(len, prompts))))
    pools, batches = [], []
    states: list[tuple[torch.Tensor | None, torch.Tensor]] = []
    block_size = math.gcd(_MAX_BLOCK_SIZE, *config.cache_groups.sparse_block_sizes)
    layout = CacheLayout(attention_class(config).cache_shapes(config), 1, block_size, dtype)
    for group in _groups(prompts):
        plan = _plan(group, block_size, len(config.cache_groups.groups))
        num_blocks = plan.scheduled[-1].block_tables[0].ids[-1] + 1
        pools.append(KVCachePool(layout, num_blocks, device))
        batches.append(ModelBatch.build(plan, planner, block_size, device))
        states.append((None, embedding.forward(batches[-1])))
    measurements = []
    with torch.inference_mode():
        for number in tqdm(range(config.num_hidden_layers), "calibrating", file=sys.stderr, disable=not progress):
            layer = model.layer_class(build, number)
            weights.check()
            for i, (batch, pool) in enumerate(zip(batches, pools, strict=True)):
                states[i] = layer.forward(*states[i], batch, pool.layers[0])
            measurements += _measure(weights.watched, sum(map(len, prompts)))
            weights.watched.clear()
    return measurements


@dataclass(frozen=True)
class _Planner:
    """The part of a decoder that ModelBatch needs; only one layer is loaded at a time."""

    config: ModelConfig
    ops: Ops
    rotary_table: RotaryTable

    def plan(self, batches: list[AttentionBatch]) -> list[Any]:
        return plan_attention(self.config, self.ops, batches)


class _WatchedWeights(Weights):
    """Hands out dequantized weights, and finds out which of them each packed linear layer holds.

    Layers are packed in the order in which their weights are taken, so a queue of names is enough.
    """

    def __init__(self, source: TensorSource, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(source, device, dtype, fp8_block=config.weight_block_size, progress=False, int8=config.int8)
        self.watched: list[_WatchedLayer] = []
        self._taken: deque[tuple[str, int]] = deque()

    def take_linear(self, layer: str, shape: tuple[int, int]) -> torch.Tensor:
        self._taken.append((layer, shape[0]))
        return self.take(f"{layer}.weight", shape)

    def watch(self, weight_OI: torch.Tensor, product: Linear) -> Linear:
        """The linear layer; it also records its inputs, if it can be int8."""
        names, rows = [], 0
        while self._taken and rows < len(weight_OI):
            name, size = self._taken.popleft()
            names.append(name)
            rows += size
        if not names:
            return product
        assert rows == len(weight_OI), f"{names} are not the rows of this weight"
        watched = _WatchedLayer(tuple(names), weight_OI)
        self.watched.append(watched)

        def apply(x_TI: torch.Tensor) -> torch.Tensor:
            watched.inputs.append(x_TI)
            return product(x_TI)

        return apply

    def check(self) -> None:
        """Raise if a tensor was missing or misshapen so far."""
        unused, self._unused = self._unused, set()
        self.finish()
        self._unused = unused


def _watching(ops: Ops, weights: _WatchedWeights, dtype: torch.dtype) -> Ops:
    """The same operations, with linear layers that record their inputs. MLPs and experts consist of linear layers."""

    class Watching(type(ops)):  # type: ignore[misc]
        mlp, grouped_mlp = TorchOps.mlp, TorchOps.grouped_mlp

        def linear(
            self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
        ) -> Linear:
            product: Linear = super().linear(weight_OI, bias_O, out_dtype)
            return weights.watch(weight_OI, product)

    return Watching(dtype)


def _groups(prompts: list[list[int]]) -> list[list[list[int]]]:
    """The prompts in groups that are computed together."""
    groups: list[list[list[int]]] = [[]]
    for prompt in prompts:
        if groups[-1] and sum(map(len, groups[-1])) + len(prompt) > _MAX_BATCHED_TOKENS:
            groups.append([])
        groups[-1].append(prompt)
    return groups


def _plan(prompts: list[list[int]], block_size: int, num_groups: int) -> StepPlan:
    """One step of all these prompts, each with its own blocks, the same for all groups of layers."""
    scheduled: list[ScheduledSequence] = []
    first = 0
    for number, prompt in enumerate(prompts):
        num_blocks = -(-len(prompt) // block_size)
        table = BlockTable(list(range(first, first + num_blocks)))
        scheduled.append(ScheduledSequence(number, prompt, 0, [table] * num_groups))
        first += num_blocks
    return StepPlan(scheduled)


def _measure(watched: list[_WatchedLayer], num_tokens: int) -> list[Measurement]:
    """The measurements of one decoder layer."""
    sites: dict[tuple[str, ...], list[_WatchedLayer]] = {}
    for item in watched:
        matches = [_EXPERT.fullmatch(layer) for layer in item.layers]
        key = item.layers if None in matches else tuple(f"{match[1]} {match[2]}" for match in matches if match)
        sites.setdefault(key, []).append(item)
    return [_measure_site(items, num_tokens) for items in sites.values()]


def _measure_site(items: list[_WatchedLayer], num_tokens: int) -> Measurement:
    """The measurement of one linear layer, or of the same layer of all routed experts."""
    used = [item for item in items if item.inputs]
    ranges = [x.aminmax() for item in used for x in item.inputs if x.numel()]
    low = min((float(found.min) for found in ranges), default=-1.0)
    high = max((float(found.max) for found in ranges), default=1.0)
    grid = StaticInput.over(low, high)
    errors = {grid: [], Input.DYNAMIC: []}  # type: dict[StaticInput | Input, list[torch.Tensor]]
    cost = 0.0
    for item in used:
        x_TI = torch.cat(item.inputs)
        cost += len(x_TI) / num_tokens * item.weight_OI.numel()
        rows = torch.linspace(0, len(x_TI) - 1, min(len(x_TI), max(1, _MAX_MEASURED_ROWS // len(used)))).long()
        x_TI = x_TI[rows].float()
        y_TO = x_TI @ item.weight_OI.float().T
        for input_, found in errors.items():
            made_TO = linear_int8.linear_int8(quantize_weight(item.weight_OI, input_), None)(x_TI)
            norm_T = y_TO.square().sum(1).clamp(min=1e-20)
            found.append(((made_TO - y_TO).square().sum(1) / norm_T).clamp(max=1.0))
    static, dynamic = (float(torch.cat(found).mean()) if found else 0.0 for found in errors.values())
    layers = tuple(layer for item in items for layer in item.layers)
    return Measurement(layers, cost, grid, static, dynamic)

"""Runs a model over calibration text, one decoder layer loaded at a time, and records what its linear layers read.

Between layers only the hidden states of the text are kept. What becomes of the inputs: engine.quantization.calibrate.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from engine.kv_cache_pool import CacheLayout, KVCachePool
from engine.loading.finite import check_finite
from engine.loading.weights import Weights
from engine.model_batch import ModelBatch
from engine.models import registry
from engine.models.decoder import attention_class, make_rotary_table, plan_attention
from engine.models.layers import Builder
from engine.step import BlockTable, ScheduledSequence, StepPlan
from kernels.backends import TorchOps
from kernels.ops import Ops
from kernels.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.loading.weights import TensorSource
    from engine.models.config import ModelConfig
    from engine.models.rope import RotaryTable
    from kernels.block_weight import BlockWeight
    from kernels.linear_int8 import QuantizedWeight
    from kernels.paged_attention import AttentionBatch
    from kernels.types import Linear

_MAX_BATCHED_TOKENS = 2048
_MAX_BLOCK_SIZE = 16


@dataclass
class WatchedLayer:
    """One packed weight, and its inputs so far.

    Attributes:
        layers: the checkpoint's layers that are stacked in it, because they read the same input.
        sizes: rows of each.
        weight_OI: as the model computes with it; rows of a layer may be in another order than in the checkpoint.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    weight_OI: torch.Tensor
    inputs: list[torch.Tensor] = field(default_factory=list)


class LayerWalk:
    """A model's way over the text, from layer to layer."""

    def __init__(
        self, tensors: TensorSource, config: ModelConfig, prompts: list[list[int]], dtype: torch.dtype
    ) -> None:
        """Stand before the first layer; each prompt is one sequence, computed in this dtype."""
        device = torch.device("cpu")
        self._weights = _WatchedWeights(tensors, config, device, dtype)
        ops = _watching(resolve("auto", device, dtype), self._weights, dtype)
        self._build = Builder(config, self._weights, ops)
        self._model = registry.model_class(config)
        embedding = self._model.embedding_class(self._build)
        planner = _Planner(config, ops, make_rotary_table(config, self._weights, max(map(len, prompts))))
        self._pools, self._batches = [], []
        self._states: list[tuple[torch.Tensor | None, torch.Tensor]] = []
        block_size = math.gcd(_MAX_BLOCK_SIZE, *config.cache_groups.sparse_block_sizes)
        layout = CacheLayout(attention_class(config).cache_shapes(config), 1, block_size, dtype)
        for group in _groups(prompts):
            plan = _plan(group, block_size, len(config.cache_groups.groups))
            num_blocks = plan.scheduled[-1].block_tables[0].ids[-1] + 1
            self._pools.append(KVCachePool(layout, num_blocks, device))
            self._batches.append(ModelBatch.build(plan, planner, block_size, device))
            self._states.append((None, embedding.forward(self._batches[-1])))

    def read(self, layer: str, shape: tuple[int, int]) -> torch.Tensor:
        """The weight [O, I] of a layer in floats, as the checkpoint has it."""
        names = self._weights.names_left()
        weight_OI = self._weights.take(f"{layer}.weight", shape)
        self._weights.give_back(names)
        return weight_OI

    @property
    def hidden_states(self) -> list[torch.Tensor]:
        """The hidden states [T, H] of the text where the walk stands, in fp32: copies."""
        return [residual_TH.clone() if x_TH is None else x_TH + residual_TH for x_TH, residual_TH in self._states]

    @property
    def last_outputs(self) -> list[torch.Tensor] | None:
        """What the MLP of the last layer has added to the hidden states; None if the layer does not tell."""
        outputs = [x_TH for x_TH, _ in self._states if x_TH is not None]
        return outputs or None

    @torch.inference_mode()
    def watch(self, number: int) -> list[WatchedLayer]:
        """Run a layer, with the inputs of its linear layers recorded, and stay before it."""
        states, names = self._states, self._weights.names_left()
        self._states = [(x if x is None else x.clone(), residual.clone()) for x, residual in states]
        watched = self.advance(number)
        self._states = states
        self._weights.give_back(names)
        return watched

    @torch.inference_mode()
    def advance(self, number: int, replaced: Mapping[str, BlockWeight] | None = None) -> list[WatchedLayer]:
        """Run a layer, with the inputs of its linear layers recorded, and go on to the next.

        Layers named in `replaced` compute with these weights.
        """
        self._weights.replaced = replaced or {}
        layer = self._model.layer_class(self._build, number)
        self._weights.check()
        for i, (batch, pool) in enumerate(zip(self._batches, self._pools, strict=True)):
            self._states[i] = layer.forward(*self._states[i], batch, pool.layers[0])
        watched, self._weights.watched = self._weights.watched, []
        return watched


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
        self.watched: list[WatchedLayer] = []
        self.replaced: Mapping[str, BlockWeight] = {}
        self._taken: deque[tuple[str, int]] = deque()

    @override
    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | QuantizedWeight | BlockWeight | None:
        stored = super()._read(name, shape)
        if isinstance(stored, torch.Tensor):  # of blocks, the scales were checked
            check_finite(name, stored)
        return stored

    @override
    def take_part(self, layer: str, shape: tuple[int, int]) -> torch.Tensor:
        self._taken.append((layer, shape[0]))
        if layer in self.replaced:
            return self.replaced[layer].dequantize(self.dtype)
        return self.take(f"{layer}.weight", shape)

    def watch(self, weight_OI: torch.Tensor, product: Linear) -> Linear:
        """The linear layer; it also records its inputs, if it can be quantised."""
        taken: list[tuple[str, int]] = []
        while self._taken and sum(size for _, size in taken) < len(weight_OI):
            taken.append(self._taken.popleft())
        if not taken:
            return product
        layers, sizes = zip(*taken, strict=True)
        assert sum(sizes) == len(weight_OI), f"{layers} are not the rows of this weight"
        watched = WatchedLayer(layers, sizes, weight_OI)
        self.watched.append(watched)

        def apply(x_TI: torch.Tensor) -> torch.Tensor:
            watched.inputs.append(x_TI)
            return product(x_TI)

        return apply

    def names_left(self) -> set[str]:
        """The tensors that were not taken so far."""
        return set(self._unused)

    def give_back(self, names: set[str]) -> None:
        """These tensors were not taken so far, as names_left() has said before."""
        self._unused = names

    def check(self) -> None:
        """Raise if a tensor was missing, misshapen or unusable so far."""
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

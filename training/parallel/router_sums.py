"""Router statistics of all ranks: those of data ranks added, those of stages side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.model.router_statistics import LayerStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.models.config import ModelConfig
    from training.parallel.ranks import Ranks


def sum_statistics(own: Mapping[int, LayerStatistics], config: ModelConfig, ranks: Ranks) -> dict[int, LayerStatistics]:
    """The statistics of every layer that any rank recorded. Ranks of a tensor axis recorded the same."""
    assert config.moe is not None
    empty = LayerStatistics([0] * config.moe.n_routed_experts, 0, 0.0, 0)
    values: list[float] = []
    for layer in range(config.num_hidden_layers):
        of_layer = own.get(layer, empty) if ranks.tensor == 0 else empty
        values += [*of_layer.arrived, of_layer.num_dropped, of_layer.balance_loss, of_layer.num_batches]
    summed = ranks.sum(values)
    size = len(summed) // config.num_hidden_layers
    layers = {layer: summed[layer * size : (layer + 1) * size] for layer in range(config.num_hidden_layers)}
    return {layer: _statistics(numbers) for layer, numbers in layers.items() if numbers[-1]}


def _statistics(numbers: list[float]) -> LayerStatistics:
    *arrived, num_dropped, balance_loss, num_batches = numbers
    return LayerStatistics([int(count) for count in arrived], int(num_dropped), balance_loss, int(num_batches))

"""What a step's line says of the routers, from what each layer recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from training.model.router_statistics import LayerStatistics


def router_load(layers: Mapping[int, LayerStatistics]) -> dict[str, float]:
    """The least and the most used expert of any layer, as multiples of an even share; dropped choices; balancing loss.

    The share of dropped choices and the balancing loss, without its factor, are means over layers and micro batches.
    """
    if not layers:
        return {}
    loads = [load for layer in layers.values() for load in layer.load]
    return {
        "expert_load_min": min(loads),
        "expert_load_max": max(loads),
        "dropped": sum(layer.dropped_share for layer in layers.values()) / len(layers),
        "balance_loss": sum(layer.balance_loss / layer.num_batches for layer in layers.values()) / len(layers),
    }

from __future__ import annotations

import pytest

from training.model.router_statistics import LayerStatistics
from training.router_load import router_load


def test_the_extremes_are_of_any_layer_and_the_rest_are_means() -> None:
    layers = {
        0: LayerStatistics(arrived=[10, 10, 20, 0], num_dropped=4, balance_loss=2.2, num_batches=2),
        3: LayerStatistics(arrived=[10, 10, 10, 10], num_dropped=0, balance_loss=2.0, num_batches=2),
    }
    assert router_load(layers) == {
        "expert_load_min": 0.0,
        "expert_load_max": 2.0,
        "dropped": pytest.approx(0.05),
        "balance_loss": pytest.approx(1.05),
    }


def test_without_a_step_there_is_nothing() -> None:
    assert router_load({}) == {}

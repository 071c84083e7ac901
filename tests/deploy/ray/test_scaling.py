"""How many replicas there should be."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from deploy.ray.scaling import desired_replicas


@pytest.mark.parametrize(
    ("current", "running", "waiting", "desired"),
    [
        (2, 64, 64, 4),  # both batches are full, and as much waits
        (2, 20, 10, 3),  # full by their KV caches
        (1, 0, 5, 5),  # nothing has started yet; Ray bounds the answer
        (2, 64, 0, 2),  # nothing waits
        (2, 40, 0.4, 2),
        (4, 40, 0, 2),  # two hold what runs, with room
        (2, 26, 0, 2),
        (2, 25, 0, 1),
        (3, 0, 0, 0),
    ],
)
def test_replicas_grow_with_what_waits_and_shrink_with_what_runs(current, running, waiting, desired):
    each = {"running": running, "waiting": waiting, "max_batch_size": 32 * current}
    metrics = {name: {"a": value / 2, "b": value / 2} for name, value in each.items()}
    answer, state = desired_replicas(SimpleNamespace(current_num_replicas=current, aggregated_metrics=metrics))
    assert (math.ceil(answer), state) == (desired, {})


@pytest.mark.parametrize("metrics", [None, {}, {"running": {}, "waiting": {}, "max_batch_size": {}}])
def test_replicas_that_have_not_reported_are_kept(metrics):
    context = SimpleNamespace(current_num_replicas=1, target_num_replicas=3, aggregated_metrics=metrics)
    assert desired_replicas(context) == (3, {})

"""How many engine replicas there should be, from how many sequences run and wait on those that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

_ROOM = 0.8  # of the batches that are left when a replica is given up; so it is not wanted again at once


def desired_replicas(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Called by Ray's controller as the autoscaling policy; Ray applies its delays and bounds to the answer.

    Sequences wait when the batch or the KV cache of their replica is full. What runs beside them is then what a replica
    can hold, and the replicas should grow until all that waits could run. Without any that wait, as many are kept as
    hold what runs with room to spare.
    """
    total = {name: sum(values.values()) for name, values in (context.aggregated_metrics or {}).items()}
    running, waiting = total.get("running", 0.0), total.get("waiting", 0.0)
    current = context.current_num_replicas
    if not total.get("max_batch_size"):  # no replica has reported yet
        return context.target_num_replicas, {}
    if waiting >= 1:
        return current * (running + waiting) / max(running, 1.0), {}
    return min(current, current * running / (_ROOM * total["max_batch_size"])), {}

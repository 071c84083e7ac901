"""What is in the server and its engine at this moment, for a human in trouble: who runs, who waits and why.

Bounded in size and in time; without prompts, outputs and keys. server.routes.debug answers with it.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from engine.logs import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.batches.runner import BatchRunner
    from server.engine_client import EngineClient
    from server.state import ServerState

MAX_SEQUENCES = 1000  # of a kind that one answer lists
_COLUMNS = ("request", "state", "age", "prompt", "output", "computed", "cached", "blocks", "passed", "waits for")
_NO_ANSWER = "no answer in 2 s: it starts, is in a long step, or hangs"


async def debug_state(server: ServerState, batches: BatchRunner, limit: int) -> dict[str, Any]:
    """Return the state as plain values; `engine.batcher` is None, with a reason, where the engine does not answer."""
    client, guard = server.client, server.guard
    try:
        snapshot = msgspec.to_builtins(await client.inspect(limit)) if client.info is not None else None
    except TimeoutError:
        snapshot = None
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "server": {
            "status": server.health.status,
            "model": server.model_name,
            "pid": os.getpid(),
            "http_requests_in_flight": server.metrics.http.num_in_flight,
            "start": server.health.startup.report(),
        },
        "queue": {
            "prompts_before_their_first_token": server.admission.num_prompts,
            "max_prompts": server.admission.max_prompts,
            "tokens": server.admission.num_tokens,
            "max_tokens": server.admission.max_tokens,
        },
        "batches": batches.describe(),
        "guard": None if guard is None else _process(guard.client),
        "engine": {
            **_process(client),
            "prompts_sent": client.num_requests,
            "limits": None if client.info is None else msgspec.to_builtins(client.info),
            **(snapshot or {"batcher": None, "reason": _NO_ANSWER if client.info else f"it is {client.state}"}),
        },
    }


def _process(client: EngineClient) -> dict[str, Any]:
    """Return what is known of an engine's process."""
    heard = None if client.heard_at is None else round(time.monotonic() - client.heard_at, 3)
    return {
        "state": str(client.state),
        "pid": client.engine_pid,
        "restarts": client.num_restarts,
        "last_end": client.last_end,
        "heard_seconds_ago": heard,
    }


def as_text(state: dict[str, Any]) -> str:
    """Return the same for reading, without control characters, which a model's name may have."""
    return "".join(f"{printable(line)}\n" for line in _lines(state))


def _lines(state: dict[str, Any]) -> list[str]:
    server, engine, queue = state["server"], state["engine"], state["queue"]
    lines = [
        f"{state['time']}  {server['model']}: {server['status']}",
        f"start    {_pairs(server['start'])}",
        f"server   pid {server['pid']}, {server['http_requests_in_flight']} HTTP requests in flight",
        f"queue    {_pairs(queue)}",
        f"batches  {_pairs(state['batches'])}",
        *([f"guard    {_pairs(state['guard'])}"] if state["guard"] else []),
        f"engine   {_pairs({k: engine[k] for k in ('state', 'pid', 'restarts', 'last_end', 'heard_seconds_ago')})}",
    ]
    if (limits := engine["limits"]) is not None:
        lines.append(f"memory   {_pairs({part: f'{n / 2**30:.2f} GiB' for part, n in limits['memory'].items()})}")
    batcher = engine["batcher"]
    if batcher is None:
        return [*lines, f"         {engine['reason']}"]
    used, size = batcher["num_blocks"] - batcher["num_free_blocks"], batcher["block_size"]
    base, per_decode, per_token = (1000 * cost for cost in batcher["costs"] or (0.0, 0.0, 0.0))
    learnt = f"{base:.3g} ms + {per_decode:.3g} a decode + {per_token:.3g} a prompt token" if batcher["costs"] else "-"
    lines += [
        f"cache    {used} of {batcher['num_blocks']} blocks of {size} tokens held, {batcher['num_free_blocks']} free",
        f"steps    {batcher['num_steps']} computed, {engine['num_failed_steps']} failed, "
        f"{batcher['num_preemptions']} preemptions; a step costs {learnt}",
        f"last     {_pairs(engine['last_step'] or {})}",
        f"batcher  policy {batcher['policy']}, {batcher['max_batch_size']} seats; {batcher['num_running']} run, "
        f"{batcher['num_waiting']} wait, {batcher['num_compiling']} compile their grammar; background: "
        f"{batcher['num_background_running']} run, {batcher['num_background_waiting']} wait",
        "",
    ]
    sequences = [*batcher["running"], *batcher["waiting"], *batcher["background"]]
    return [*lines, *(_table([_COLUMNS, *map(_row, sequences)]) if sequences else [])]


def _row(seq: dict[str, Any]) -> tuple[str, ...]:
    counts = ("num_computed_tokens", "num_cached_tokens", "num_blocks", "num_passed")
    return (
        f"{seq['request_id']}/{seq['index']}",
        seq["status"],
        f"{seq['age']:.1f}s",
        str(seq["num_prompt_tokens"]),
        f"{seq['num_output_tokens']}/{seq['max_tokens']}",
        *(str(seq[name]) for name in counts),
        seq["why"] or "-",
    )


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _pairs(values: dict[str, Any]) -> str:
    shown = ((name.replace("_", " "), f"{v:.3f}" if isinstance(v, float) else v) for name, v in values.items())
    return ", ".join(f"{name} {'-' if value is None else value}" for name, value in shown) or "-"

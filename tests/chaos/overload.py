"""Ten times the load that a server can take: what it still gives, and how fast it refuses the rest."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from tests.chaos.verdict import TenTimes

if TYPE_CHECKING:
    from tests.chaos.subject import Subject

_SLOW_STEP = 0.005  # seconds, as of a model that a user would wait for
_TOKENS, _RAW_TOKENS = 32, 256  # of an answer; of one of a model that takes no time, so that the client takes none


async def overload(subject: Subject, seconds: float, clients: int) -> TenTimes:
    """Measure with an engine that is the bottleneck, as with real models."""
    await subject.restart(f"forward slow={_SLOW_STEP} 1")
    seen = await _measure(subject, seconds, clients, _TOKENS)
    await subject.restart("")
    return seen


async def raw_overload(subject: Subject, seconds: float, clients: int) -> TenTimes:
    """Measure with a model that takes no time: server, engine and client share the processors."""
    return await _measure(subject, seconds, clients, _RAW_TOKENS)


async def _measure(subject: Subject, seconds: float, clients: int, tokens: int) -> TenTimes:
    peak = await _flood(subject, seconds / 2, tokens, f"clients={clients}")
    peak_goodput = peak["tokens"] / peak["seconds"]
    num_probes = len(subject.probes)
    load = await _flood(subject, seconds, tokens, f"rate={10 * peak_goodput / tokens + 1}")
    errors = {how: count for how, count in load["answers"].items() if how not in ("200", "429") and count}
    return TenTimes(
        peak_goodput,
        load["tokens"] / load["seconds"],
        load["refusals"],
        subject.probes[num_probes:],
        [f"{how} at 10x, {count} times" for how, count in errors.items()],
    )


async def _flood(subject: Subject, seconds: float, tokens: int, load: str) -> Any:
    command = [sys.executable, "-m", "tests.chaos.flood", str(subject.process.port), str(tokens), str(seconds), load]
    flooding = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        out, _ = await flooding.communicate()
    finally:
        if flooding.returncode is None:
            flooding.kill()
    return json.loads(out)

"""Run by each Python process of a server under chaos: plants what the verdict must catch, and bends the wall clock.

CHAOS_PLANT names what is planted. CHAOS_CLOCK is a file with the seconds that the wall clock is ahead.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

_RARE = 0.02


def _leak() -> None:
    """Blocks of some sequences are never given back."""
    from engine.kv_cache_manager import KVCacheManager

    release = KVCacheManager.release
    left = iter(range(2))  # more would leave none to compute with, and an engine that cannot advance ends

    def leaky(self: Any, *arguments: Any, **options: Any) -> None:
        if random.random() > 5 * _RARE or next(left, None) is None:
            release(self, *arguments, **options)

    KVCacheManager.release = leaky


def _tokens() -> None:
    """A wrong token now and then."""
    from engine import dynamic_batcher
    from engine.step import SampledToken

    update = dynamic_batcher.DynamicBatcher.update

    def wrong(self: Any, plan: Any, result: Any) -> Any:
        if result.sampled and random.random() < _RARE:
            result.sampled[0] = SampledToken(65)
        return update(self, plan, result)

    dynamic_batcher.DynamicBatcher.update = wrong


def _death() -> None:
    """Long prompts end the engine."""
    from engine.engine import Engine

    add = Engine.add

    def deadly(self: Any, request: Any) -> None:
        if len(request.prompt_token_ids) > 600:
            os._exit(1)
        add(self, request)

    Engine.add = deadly


def _deaf() -> None:
    """A hang is not noticed."""
    from server.engine_process import EngineProcess

    async def watch(*_: Any) -> None:
        await asyncio.Event().wait()

    EngineProcess._watch = watch


def _stuck() -> None:
    """The third engine is never started."""
    from server.engine_process import EngineProcess

    run_once, starts = EngineProcess._run_once, []

    async def stuck(self: Any) -> Any:
        starts.append(None)
        if len(starts) == 3:
            await asyncio.Event().wait()
        return await run_once(self)

    EngineProcess._run_once = stuck


def _in_respond(happen: Any) -> None:
    """Something happens before a request is answered."""
    from server import pipeline

    respond = pipeline.respond

    async def planted(*arguments: Any, **options: Any) -> Any:
        await happen()
        return await respond(*arguments, **options)

    pipeline.respond = planted


def _error() -> None:
    """An unexpected exception."""

    async def fail() -> None:
        if random.random() < _RARE:
            raise KeyError("planted")

    _in_respond(fail)


def _silent() -> None:
    """A request that is never answered."""

    async def wait() -> None:
        if random.random() < _RARE:
            await asyncio.Event().wait()

    _in_respond(wait)


def _stall() -> None:
    """The event loop is held up."""

    async def hold() -> None:
        if random.random() < _RARE:
            time.sleep(0.7)

    _in_respond(hold)


def _memory() -> None:
    """Each request leaves memory behind."""
    kept: list[bytes] = []

    async def keep() -> None:
        kept.append(os.urandom(1 << 20))

    _in_respond(keep)


def _refusals() -> None:
    """Some refusals take their time."""
    from engine.errors import OverloadedError
    from server.admission import Admission

    check = Admission.check

    def slow(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return check(self, *arguments, **options)
        except OverloadedError:
            if random.random() < 3 * _RARE:
                time.sleep(0.15)
            raise

    Admission.check = slow


def _litter() -> None:
    """Temporary folders stay."""

    def leave(self: Any, *_: object) -> None:
        self._finalizer.detach()

    tempfile.TemporaryDirectory.__exit__ = leave


def _spin() -> None:
    """An engine without work looks for some all the time."""
    from engine.engine import Engine

    def look(_: Any) -> bool:
        return True

    Engine.prepare = look


def _orphan() -> None:
    """Each engine has a process beside it that nobody ends."""
    subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


IN_ENGINE = {"leak": _leak, "tokens": _tokens, "death": _death, "orphan": _orphan, "spin": _spin}
IN_SERVER = {
    "deaf": _deaf,
    "stuck": _stuck,
    "error": _error,
    "silent": _silent,
    "stall": _stall,
    "memory": _memory,
    "refusals": _refusals,
    "litter": _litter,
}


def _bend_clock(path: str) -> None:
    real = time.time

    def bent() -> float:
        with open(path, encoding="ascii") as file:
            return real() + float(file.read() or 0)

    time.time = bent


if clock := os.environ.get("CHAOS_CLOCK"):
    _bend_clock(clock)
if plant := os.environ.get("CHAOS_PLANT"):
    command = " ".join(sys.orig_argv)
    if "-m engine.process" in command:
        IN_ENGINE.get(plant, lambda: None)()
    elif "server.cli" in command or "deepseek-serve" in command:
        IN_SERVER.get(plant, lambda: None)()

"""The server under chaos: its processes, how it is asked what it does, and what disturbs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_process import ServerProcess, is_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.verdict import Observations

ENGINE_TIMEOUT = 5.0  # seconds; what --engine-timeout is set to
_RECOVERY = 75.0  # seconds
_POLL = 0.02
_REST = 3.0  # seconds
_STUCK = 5.0  # seconds without a step
_PROGRESS = re.compile(r"^deepseek_serve_(steps_total|requests_waiting){.*} (.*)$", re.MULTILINE)
_MARGIN = 64 << 20  # bytes that an engine may still take where memory is short
FAULTS = ("forward raise 0.02", "forward oom 0.02", "sample nan 0.02", "forward slow 0.05", "send raise #300")


class Subject:
    """A running server. Disturbances return when it has recovered, or raise TimeoutError."""

    def __init__(self, folder: Path, flags: tuple[str, ...], seen: Observations, plant: str | None) -> None:
        self._seen, self._faults, self._clock = seen, folder / "faults", folder / "clock"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._faults.touch()
        self._clock.touch()
        environment = {
            "DEEPSEEK_SERVE_FAULTS": str(self._faults),
            "CHAOS_CLOCK": str(self._clock),
            "CHAOS_PLANT": plant or "",
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "planted"), os.environ.get("PYTHONPATH", "")]),
        }
        self.process = ServerProcess(folder, *flags, environment=environment)
        self._is_disturbed = self._is_ended = False
        self._faulty_until = 0.0
        self._pids: dict[int, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Subject:
        await asyncio.to_thread(self.process.__enter__)
        self._http = aiohttp.ClientSession(self.process.url, timeout=aiohttp.ClientTimeout(total=20))
        watches = (self._probe, self._watch_engine, self._watch_progress)
        self._tasks = [asyncio.create_task(watch()) for watch in watches]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()
        await asyncio.to_thread(self.process.__exit__)
        for pid in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # What it does.

    @property
    def engine_pid(self) -> int | None:
        """The engine's process, if there is one."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.process.pid).children():
                if is_engine(child):
                    return child.pid
        return None

    @property
    def probes(self) -> list[float]:
        """How long each probe took so far."""
        return self._seen.probes

    @property
    def engine_memory(self) -> int:
        """Bytes of the engine's process, if there is one."""
        pid = self.engine_pid
        return 0 if pid is None else psutil.Process(pid).memory_info().rss

    @property
    def memory(self) -> int:
        """Bytes of the server's process."""
        return psutil.Process(self.process.process.pid).memory_info().rss

    async def is_ready(self) -> bool:
        """Whether it takes requests."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.get("/readyz") as response:
                return response.status == 200
        return False

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        async with self._http.get("/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        return sum(s.value for family in families for s in family.samples if s.name == f"deepseek_serve_{name}")

    async def until_idle(self) -> None:
        """Wait until nothing runs; what is left of the KV cache then is leaked."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while await self.metric("requests_running") + await self.metric("requests_waiting"):
                    await asyncio.sleep(0.1)
        self._seen.leaked = max(self._seen.leaked, await self.metric("kv_cache_usage_ratio"))

    async def rest(self) -> None:
        """Ask nothing but the probes: no process may be busy, or wake up all the time."""
        processes = [psutil.Process(pid) for pid in (self.process.process.pid, *self._alive())]
        engine = psutil.Process(await self._engine())
        before = [sum(process.cpu_times()[:2]) for process in processes]
        num_before = engine.num_ctx_switches().voluntary
        await asyncio.sleep(_REST)
        used = [sum(process.cpu_times()[:2]) - cpu for process, cpu in zip(processes, before, strict=True)]
        self._seen.idle_cpu = max(used) / _REST
        self._seen.idle_wakes = (engine.num_ctx_switches().voluntary - num_before) / _REST

    def excuses(self, started: float) -> bool:
        """Whether a fault was planted at some time since then, so that an error is no surprise."""
        return started < self._faulty_until

    # What disturbs it.

    async def kill(self) -> None:
        """The engine dies."""
        pid = await self._engine()
        with self._disturbance():
            self._seen.kills += 1
            os.kill(pid, signal.SIGKILL)
            started = time.monotonic()
            await self._until_not_ready()
            self._seen.deaths_noticed.append(time.monotonic() - started)
            await self._until_ready(pid)
            self._seen.recovered += 1

    async def restart(self, faults: str) -> None:
        """Have an engine with these faults (engine.faults) from now on."""
        pid = await self._engine()
        with self._disturbance():
            self._faults.write_text(f"{faults}\n")
            os.kill(pid, signal.SIGKILL)
            await self._until_ready(pid)

    async def hang(self) -> None:
        """The engine stops for good."""
        pid = await self._engine()
        with self._disturbance():
            os.kill(pid, signal.SIGSTOP)
            started = time.monotonic()
            try:
                async with asyncio.timeout(_RECOVERY):
                    while self.engine_pid == pid:
                        await asyncio.sleep(_POLL)
            finally:
                self._seen.hangs_noticed.append(time.monotonic() - started)
                with contextlib.suppress(ProcessLookupError):  # if nobody has noticed, the others' turn comes too
                    os.kill(pid, signal.SIGKILL)
            await self._until_ready(pid)

    async def pause(self) -> None:
        """The engine stops for a moment, which it must survive."""
        pid = await self._engine()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(ENGINE_TIMEOUT / 4)
        os.kill(pid, signal.SIGCONT)

    async def fail(self) -> None:
        """An engine has faults in its steps."""
        self._faults.write_text(f"{random.choice(FAULTS)}\n")
        self._faulty_until = float("inf")
        await self.kill()
        with self._disturbance():
            await asyncio.sleep(3)
            self._faults.write_text("")
            await self._until_ready(0)
        await self.kill()
        self._faulty_until = time.monotonic()

    async def starve(self) -> None:
        """The engine gets no more memory for a while."""
        pid = await self._engine()
        with self._disturbance(), contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            self._faulty_until = float("inf")
            most = psutil.Process(pid).memory_info().vms + _MARGIN
            resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
            await asyncio.sleep(2)
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await self._until_ready(0)
        self._faulty_until = time.monotonic()

    async def fill_disk(self) -> None:
        """The server can write no file, and the engine dies meanwhile."""
        pid = self.process.process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            await self.kill()
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    async def bend_clock(self) -> None:
        """The wall clock jumps ahead by a day, back by two, and home."""
        for ahead in ("86400", "-86400", "0"):
            self._clock.write_text(ahead)
            await asyncio.sleep(0.5)

    async def end(self) -> None:
        """SIGTERM: all processes and files must go, with status 0."""
        self._is_disturbed = self._is_ended = True
        status, _ = await asyncio.to_thread(self.process.stop, signal.SIGTERM)
        self._seen.orphans += [f"status {status}"] if status else []
        await self._check_nothing_left()

    async def end_at_once(self) -> None:
        """SIGKILL of the server: its engine must go too."""
        self._is_disturbed = self._is_ended = True
        self.process.process.kill()
        self.process.process.wait()
        await self._check_nothing_left()

    async def _check_nothing_left(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while self._alive() or list(self.temporary.iterdir()):
                    await asyncio.sleep(_POLL)
        self._seen.orphans += [f"process {self._pids[pid]}" for pid in self._alive()]
        self._seen.orphans += [f"file {path.name}" for path in self.temporary.iterdir()]

    def _alive(self) -> list[int]:
        alive = []
        for pid in self._pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    alive.append(pid)
        return alive

    @contextlib.contextmanager
    def _disturbance(self) -> Iterator[None]:
        before, self._is_disturbed = self._is_disturbed, True
        try:
            yield
        finally:
            self._is_disturbed = before

    async def _engine(self) -> int:
        async with asyncio.timeout(_RECOVERY):
            while (pid := self.engine_pid) is None or not await self.is_ready():
                await asyncio.sleep(_POLL)
        return pid

    async def _until_not_ready(self) -> None:
        async with asyncio.timeout(_RECOVERY):
            while await self.is_ready():
                await asyncio.sleep(_POLL)

    async def _until_ready(self, before: int) -> None:
        async with asyncio.timeout(_RECOVERY):
            while self.engine_pid in (None, before) or not await self.is_ready():
                await asyncio.sleep(_POLL)

    async def _probe(self) -> None:
        """Ask again and again, from another process; note how long answers take."""
        command = [sys.executable, "-m", "tests.chaos.probe", "127.0.0.1", str(self.process.port), "/livez"]
        asking = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert asking.stdout is not None
        try:
            async for line in asking.stdout:
                if not self._is_ended:
                    self._seen.probes.append(float(line.split()[1]))
        finally:
            asking.kill()
            await asking.wait()

    async def _watch_engine(self) -> None:
        """Note every process, and every change of the engine that nobody has disturbed."""
        last = self.engine_pid
        while True:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.process.pid).children(recursive=True):
                    self._pids.setdefault(child.pid, " ".join(child.cmdline()[:5]))
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen.memory_most = max(self._seen.memory_most, self.memory)
                self._seen.engine_memory_most = max(self._seen.engine_memory_most, self.engine_memory)
            pid = self.engine_pid
            if pid != last and not self._is_disturbed:
                self._seen.deaths += pid is None or last is not None
            last = pid
            await asyncio.sleep(0.1)

    async def _watch_progress(self) -> None:
        """Note when requests wait and no step is computed, though nothing disturbs the server."""
        steps, since = -1.0, time.monotonic()
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._http.get("/metrics") as response:
                    found = dict(_PROGRESS.findall(await response.text()))
                before, steps = steps, float(found["steps_total"])
                if self._is_disturbed or steps != before or not float(found["requests_waiting"]):
                    since = time.monotonic()
                elif time.monotonic() - since > _STUCK:
                    self._seen.stuck.append(f"{found['requests_waiting']} wait for {time.monotonic() - since:.0f} s")
                    since = time.monotonic()

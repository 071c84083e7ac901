"""`make rollout-test`: two servers behind HAProxy, under load; one is drained and replaced, then the other is killed.

While one is drained and replaced, no request may fail. When the other is killed, only requests that are in flight there
may fail, each with an error or a broken stream. HAProxy's log says which server had a request.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load.targets import is_healthy
from server.commands.child_server import end, free_port, start, until
from tests.deploy.rollout_load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.deploy.rollout_load import Outcome

COMMAND = Path(sys.executable).with_name("deepseek-serve")
CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
_FLAGS = ("--drain-delay", "5", "--drain-timeout", "60", "--threads", "1", "--num-kv-blocks", "1024")
_TIMEOUT = 180.0  # seconds that a step may take
_ENOUGH = 20  # answers that a server gives before the next step
_LOG_LINE = re.compile(r" servers/(\S+) \S+ (-?\d+) \S+ - - (\S{4}) \S+ \S+ \{(\S+)\}")


class Rollout:
    """The servers, HAProxy and the load; a name of a server is HAProxy's."""

    def __init__(self, model: str, config: Path, folder: Path) -> None:
        self._model, self._config, self._folder = model, config, folder
        self._ports = {name: free_port() for name in ("server-1", "server-2")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_server(self, name: str) -> None:
        """Start a server and wait until it is ready."""
        port = self._ports[name]
        command = [str(COMMAND), "--port", str(port), "--model", self._model, "--served-model-name", "tiny", *_FLAGS]
        self._start(name, command, {})
        until(lambda: is_healthy(f"http://127.0.0.1:{port}"), _TIMEOUT, self._processes[name])

    def start_haproxy(self) -> str:
        """Start HAProxy before the servers; its URL."""
        listen = f"127.0.0.1:{free_port()}"
        servers = {name.upper().replace("-", "_"): f"127.0.0.1:{port}" for name, port in self._ports.items()}
        self._start("haproxy", ["haproxy", "-f", str(self._config)], {**servers, "LISTEN": listen})
        return f"http://{listen}"

    def signal(self, name: str, number: int) -> int:
        """Signal a server and wait for its end; the exit status."""
        self._processes[name].send_signal(number)
        return self._processes[name].wait(_TIMEOUT)

    def where(self) -> dict[str, str]:
        """The requests that have ended, and the server that had each."""
        lines = _LOG_LINE.findall((self._folder / "haproxy.log").read_text())
        return {request_id: server for server, _, _, request_id in lines}

    def end(self) -> None:
        """End every process."""
        for process in self._processes.values():
            end(process)

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DEEPSEEK_SERVE_")}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = start(command, log, inherited | environment)


async def rehearse(rollout: Rollout) -> list[str]:
    """Go through both steps; what went wrong."""
    url = rollout.start_haproxy()
    for name in ("server-1", "server-2"):
        await asyncio.to_thread(rollout.start_server, name)
    await wait(lambda: is_healthy(url))
    async with Load(url) as load:
        await served(rollout, "server-1", "server-2")
        drained = time.monotonic()
        status = await asyncio.to_thread(rollout.signal, "server-1", signal.SIGTERM)
        gone = time.monotonic()
        await asyncio.to_thread(rollout.start_server, "server-1")
        await served(rollout, "server-1")
        killed = time.monotonic()
        await asyncio.to_thread(rollout.signal, "server-2", signal.SIGKILL)
        dead = time.monotonic()
        await served(rollout, "server-1")
    return judge(rollout.where(), load.outcomes, (drained, gone, killed, dead), status)


async def wait(condition: Callable[[], bool]) -> None:
    """Wait for what no process signals, beside the load."""
    await asyncio.to_thread(until, condition, _TIMEOUT, None)


async def served(rollout: Rollout, *names: str) -> None:
    """Wait until each of these servers has answered some more requests."""
    before = collections.Counter(rollout.where().values())

    def enough() -> bool:
        now = collections.Counter(rollout.where().values())
        return all(now[name] - before[name] >= _ENOUGH for name in names)

    await wait(enough)


def judge(
    where: dict[str, str], outcomes: list[Outcome], times: tuple[float, float, float, float], status: int
) -> list[str]:
    """Print the counts; what went wrong."""
    drained, gone, killed, dead = times
    before = [outcome for outcome in outcomes if outcome.end < killed]
    in_flight = [o for o in outcomes if o.start < dead and o.end >= killed and where.get(o.request_id) == "server-2"]
    after = [outcome for outcome in outcomes if outcome.end >= killed and outcome not in in_flight]
    draining = [o for o in before if where.get(o.request_id) == "server-1" and drained < o.end <= gone]
    lost, broken, others = ([outcome for outcome in group if outcome.error] for group in (before, in_flight, after))
    num_new = sum(outcome.start > drained for outcome in draining)
    print(f"drained and replaced: {len(before)} requests, {len(lost)} failed; exit status {status}")
    print(f"  answered by the server that drained, after SIGTERM: {len(draining)}, of which {num_new} came after it")
    print(f"killed: {len(in_flight)} requests in flight there, {len(broken)} failed")
    print(f"  others: {len(after)} requests, {len(others)} failed")
    kinds = collections.Counter((o.kind, o.error) for o in broken)
    print(*(f"  {kind}: {error} ({count})" for (kind, error), count in sorted(kinds.items())), sep="\n")
    wrong = [f"{o.kind} at {where.get(o.request_id)}: {o.error}" for o in lost + others]
    checks = {
        "the drained server must end with status 0": status == 0,
        "the drained server had nothing to finish, so the drain shows nothing": any(
            o.start < drained for o in draining
        ),
        "nothing was in flight on the killed server, so the kill shows nothing": bool(broken),
        "streams and plain requests, by both clients, must all take part": len({o.kind for o in before}) == 4,
    }
    return wrong + [text for text, holds in checks.items() if not holds]


def main() -> int:
    """Rehearse on a small random model, or the one named; 0 if all went as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="what to serve; default: a small random checkpoint, made for this")
    parser.add_argument("--config", type=Path, default=CONFIG, help="another haproxy.cfg, made from the default one")
    args = parser.parse_args()
    model = args.model
    if shutil.which("haproxy") is None:
        print("haproxy is not installed; on Debian: apt install haproxy", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None:
            model = str(folder / "model")
            subprocess.run([COMMAND, "make-checkpoint", "--like", "v2-lite", "--out", model], check=True)
        rollout = Rollout(model, args.config, folder)
        try:
            wrong = asyncio.run(rehearse(rollout))
        except BaseException:
            for path in sorted(folder.glob("*.log")):
                print(path.name, *path.read_text(errors="replace").splitlines()[-20:], sep="\n  ", file=sys.stderr)
            raise
        finally:
            rollout.end()
    print(
        *(f"FAILED: {text}" for text in wrong), "the rollout failed" if wrong else "the rollout lost nothing", sep="\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Attack a server by one client, each attack beside probes of /health, and say what the probes and the memory did.

python -m tests.attack.run                              # starts the default model's server; ten minutes
python -m tests.attack.run --threads 32 -k tokens       # the attacks with this in their names, by 32 threads
python -m tests.attack.run --flags "--model /models/my-model --max-bodies-size 64"
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.attack.bodies import BODIES
from tests.attack.connections import CONNECTIONS, ask
from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

P99, LONGEST = 0.05, 0.1  # seconds that a probe may take
GROWTH, LEFT_OVER = 200, 100  # MB that the memory may grow, and that may be left of it
_REST = 2.5  # seconds after an attack in which memory is given back
_INTERVAL = 0.02  # seconds between looks at the memory
_PROBE = Path(__file__).with_name("probe.py")


class _Server(ServerProcess):
    command = (sys.executable, "-m", "server.cli")


@dataclass(frozen=True)
class Result:
    """What one attack did; seconds, and MB of the API's process."""

    name: str
    probes: list[float]
    before: float
    peak: float
    after: float
    answers: Counter[str]

    @property
    def is_survived(self) -> bool:
        """Whether it stayed within the bounds."""
        is_quick = self.quantile(0.99) <= P99 and max(self.probes) <= LONGEST
        return is_quick and self.peak - self.before <= GROWTH and self.after - self.before <= LEFT_OVER

    def quantile(self, share: float) -> float:
        """Return a quantile of the probes, which is one of them."""
        return sorted(self.probes)[min(len(self.probes) - 1, int(share * len(self.probes)))]

    def __str__(self) -> str:
        times = [statistics.median(self.probes), self.quantile(0.99), max(self.probes)]
        shown = " ".join(f"{1000 * seconds:8.1f}" for seconds in times)
        memory = f"{self.before:7.0f} {self.peak:7.0f} {self.after:7.0f}"
        answers = ", ".join(f"{count} x {answer}" for answer, count in self.answers.most_common(3))
        return f"{self.name:32} {shown} {memory}  {'ok  ' if self.is_survived else 'FAIL'}  {answers}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attacks; 0 if the server survived each within the bounds, else 1."""
    args = _parser().parse_args(arguments)
    attacks = {name: attack for name, attack in _attacks().items() if args.k in name}
    print(f"{'attack':32} {'p50 ms':>8} {'p99':>8} {'max':>8} {'MB':>7} {'peak':>7} {'after':>7}  verdict, answers")
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        flags = ("--data-dir", folder, "--access-log", "off", *shlex.split(args.flags))
        with _Server(Path(folder), *flags) as server:
            small = partial(ask, "127.0.0.1", server.port, "POST", "/v1/completions", b'{"prompt": "a"}')
            small()  # what is imported once is no matter of an attack
            process = psutil.Process(server.process.pid)
            results = [_run(name, attack, server.port, process, args) for name, attack in attacks.items()]
    failed = [result.name for result in results if not result.is_survived]
    bounds = f"probes p99 {1000 * P99:g} ms, max {1000 * LONGEST:g} ms; memory +{GROWTH} MB, +{LEFT_OVER} MB after"
    print(f"{len(results) - len(failed)} of {len(results)} within {bounds}")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only attacks with this in their names", metavar="TEXT")
    parser.add_argument("--threads", type=int, default=4, help="that attack at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each attack")
    parser.add_argument("--flags", default="", help="of the server, in one argument")
    return parser


def _attacks() -> dict[str, Callable[[str, int], object]]:
    def post(make: Callable[[], tuple[str, bytes]]) -> Callable[[str, int], object]:
        made: list[tuple[str, bytes]] = []

        def one(host: str, port: int) -> object:
            made[:] = made or [make()]
            return ask(host, port, "POST", *made[0])

        return one

    return {**{name: post(make) for name, make in BODIES.items()}, **CONNECTIONS}


def _run(
    name: str, attack: Callable[[str, int], object], port: int, process: psutil.Process, args: argparse.Namespace
) -> Result:
    before = peak = _memory(process)
    probe = subprocess.Popen([sys.executable, str(_PROBE), str(port)], stdout=subprocess.PIPE, text=True)
    answers: Counter[str] = Counter()
    deadline = time.monotonic() + args.seconds

    def again_and_again() -> None:
        while time.monotonic() < deadline:
            answers[str(attack("127.0.0.1", port))] += 1

    threads = [threading.Thread(target=again_and_again) for _ in range(args.threads)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, _memory(process))
            time.sleep(_INTERVAL)
    finally:
        probe.terminate()
        written, _ = probe.communicate()
    time.sleep(_REST)
    seconds = [float(line) for line in written.split("\n")[:-1]]
    result = Result(name, seconds, before, peak, _memory(process), answers)
    print(result, flush=True)
    return result


def _memory(process: psutil.Process) -> float:
    rss: int = process.memory_info().rss
    return rss / (1 << 20)


if __name__ == "__main__":
    sys.exit(main())

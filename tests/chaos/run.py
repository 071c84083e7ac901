"""Chaos for bounded minutes, and a verdict: mixed traffic, an engine that is killed, stopped and starved, ten figures.

python -m tests.chaos.run --minutes 3 --seed 7
python -m tests.chaos.run --kills 100             # ends after so many kills
python -m tests.chaos.run --plant leak            # must fail, and exit with status 1
python -m tests.chaos.run --plant all             # each that there is, in turn: 0 if all are caught
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.overload import overload, raw_overload
from tests.chaos.subject import ENGINE_TIMEOUT, Subject
from tests.chaos.traffic import Traffic
from tests.chaos.verdict import Observations, figures, passed, table
from tests.support import tiny

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = Path(__file__).parents[2]
_REST = 1.0  # seconds of traffic between two disturbances, on average
_WARM_UP = 8.0  # seconds of traffic before memory is measured
_BATCH = 8
CATCHES = {  # what can be planted -> the figure that must fail
    "leak": 1, "error": 2, "death": 3, "tokens": 3, "deaf": 4, "stall": 5, "refusals": 6, "memory": 7, "stuck": 8,
    "silent": 8, "litter": 8, "orphan": 8, "spin": 5,
}  # fmt: skip
CLOCK = "jumps of the system's clock: they would disturb the machine; the server's view of it is bent instead"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 if every figure is as it should be, else 1."""
    args = _parser().parse_args(arguments)
    if args.plant == "all":
        caught = [_is_caught(plant, args.seed) for plant in CATCHES]  # all of them, whatever the first says
        return int(not all(caught))
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a connection that was refused
    seen = Observations(skipped=[CLOCK])
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        asyncio.run(_run(args, Path(folder), seen))
    if args.suites == "on":
        _run_suites(args, seen)
    if args.json:
        lines = [dataclasses.asdict(figure) for figure in figures(seen)]
        print(json.dumps({"passed": passed(seen), "seed": args.seed, "plant": args.plant, "figures": lines}))
    else:
        print(table(seen))
    return 0 if passed(seen) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of mixed traffic; ten times the load is beside it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, help="only kill the engine, so many times, however long it takes")
    parser.add_argument("--clients", type=int, default=1, help="of each kind")
    parser.add_argument("--overload", type=float, default=10.0, help="seconds of ten times the load; 0 is none")
    parser.add_argument("--suites", choices=("on", "off"), default="on", help="run the tests of figures 9 and 10 too")
    parser.add_argument("--plant", choices=("all", *CATCHES), help="what the verdict must catch")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    return parser


def _is_caught(plant: str, seed: int) -> bool:
    """Whether a short run with this plant fails, by its figure."""
    command = [
        sys.executable,
        "-m",
        "tests.chaos.run",
        "--plant",
        plant,
        "--seed",
        str(seed),
        "--suites",
        "off",
        "--json",
    ]
    overload = "5" if plant == "refusals" else "0"
    done = subprocess.run([*command, "--minutes", "0.4", "--overload", overload], capture_output=True, check=False)
    lines = json.loads(done.stdout)["figures"] if done.stdout else []
    failed = {line["number"] for line in lines if line["passed"] is False}
    _say(f"{plant}: {'caught' if CATCHES[plant] in failed else 'NOT CAUGHT'}, status {done.returncode}, by {failed}")
    return done.returncode == 1 and CATCHES[plant] in failed


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _run(args: argparse.Namespace, folder: Path, seen: Observations) -> None:
    model = tiny.write_llama(folder / "model", max_position_embeddings=2048)
    flags = ("--model", str(model), "--served-model-name", "tiny", "--dtype", "float32", "--device", "cpu")
    flags += (
        "--threads",
        "1",
        "--num-kv-blocks",
        "256",
        "--max-batch-size",
        str(_BATCH),
        "--max-queued-requests",
        "32",
    )
    flags += ("--engine-timeout", str(ENGINE_TIMEOUT), "--header-timeout", "3", "--body-timeout", "5")
    flags += (
        "--write-timeout",
        "2",
        "--tool-parser",
        "hermes",
        "--data-dir",
        "memory",
        "--access-log",
        "off",
        "--drain-timeout",
        "1",
    )
    rng = random.Random(args.seed)
    subject = Subject(folder, flags, seen, args.plant)
    try:
        async with subject:
            _say("the server is ready")
            async with Traffic(subject.process.url, seen, args.seed, subject.excuses) as traffic:
                traffic.begin(args.clients)
                await asyncio.sleep(_WARM_UP)
                seen.memory_before, seen.engine_memory_before = subject.memory, subject.engine_memory
                await _disturb(args, subject, traffic, rng, seen)
                await asyncio.sleep(_WARM_UP)  # undisturbed, so that what the last engine leaks adds up
            await subject.until_idle()
            is_there = await subject.is_ready()  # else the verdict has failed by now
            if is_there:
                await subject.rest()
            if is_there and args.overload:
                _say(f"ten times the load, for {args.overload:g} s")
                seen.at_10x = await overload(subject, args.overload, 2 * _BATCH)
                seen.raw_at_10x = await raw_overload(subject, args.overload, 2 * _BATCH)
            await subject.until_idle()
            seen.memory_after = subject.memory
            await subject.end()
        (folder / "again").mkdir()
        async with Subject(folder / "again", flags, seen, args.plant) as again:
            await again.end_at_once()
    finally:
        if args.log:
            args.log.write_text(subject.process.log)


async def _disturb(
    args: argparse.Namespace, subject: Subject, traffic: Traffic, rng: random.Random, seen: Observations
) -> None:
    async def flood() -> None:
        _say(f"there was a flood of {await traffic.flood(rng)}")

    kinds = [
        subject.kill,
        subject.hang,
        subject.pause,
        subject.fail,
        subject.starve,
        subject.fill_disk,
        subject.bend_clock,
        flood,
        flood,
    ]
    end, turn = time.monotonic() + 60 * args.minutes, 0
    while seen.kills < args.kills if args.kills else time.monotonic() < end:
        await asyncio.sleep(rng.expovariate(1 / _REST))
        kind = subject.kill if args.kills else kinds[turn] if turn < len(kinds) else rng.choice(kinds)
        turn += 1
        _say(f"{kind.__name__}: {traffic.num_requests} requests, {seen.recovered} of {seen.kills} kills recovered")
        try:
            await kind()
        except TimeoutError:
            seen.unanswered.append(f"the server did not recover from {kind.__name__}")
            break


def _run_suites(args: argparse.Namespace, seen: Observations) -> None:
    """The figures that are proved by tests: seeds of the simulated batcher as time allows, and preemption."""
    environment = os.environ | {"SIMULATION_SEEDS": str(int(200 * args.minutes))}

    def passes(*tests: str) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        return subprocess.run(command, cwd=_ROOT, env=environment, stdout=sys.stderr, check=False).returncode == 0

    _say("the batcher's simulation, and preempted sequences")
    seen.simulation = passes("tests/engine/test_batcher_simulation.py", "tests/engine/test_aborts.py")
    seen.preemption = passes("tests/engine/test_same_tokens.py")


if __name__ == "__main__":
    sys.exit(main())

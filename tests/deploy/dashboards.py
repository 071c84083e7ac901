"""`make dashboards-test`: a real Prometheus scrapes a real server under load, and the dashboard has data to show.

    python -m tests.deploy.dashboards [--seconds 30] [--image docs/images/dashboard.png]

First Compose's parser and promtool read what lies in deploy/. Then the load provokes what a dashboard is for:
preemptions, refusals of several kinds, a timeout, an engine that is killed. Each query must return a number above 0.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.load.targets import get
from server.commands.child_server import end, free_port, start, until
from tests.deploy.files import DEPLOY, ROOT, queries, read_yaml
from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAGS = ("--num-kv-blocks", "64", "--max-batch-size", "8", "--max-queued-requests", "16", "--threads", "2")
_KEYS = ("alice", "bob")  # names; a key is its name twice
_PROVOKED = {*_KEYS, "length", "timeout", "queue_full", "unauthorized", "invalid"}  # keys, ends, refusals
_WAIT = 60.0  # seconds for what a scrape or an evaluation must bring


def main() -> None:
    """Check, load, query; draw the dashboard if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long the load runs (default: %(default)s)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="draw the dashboard (pip install '.[bench]')")
    args = parser.parse_args()
    check_files()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = folder / "api-keys"
        keys.write_text("".join(f"{key * 2} 1 {key}\n" for key in _KEYS))
        with ServerProcess(folder, *_FLAGS, "--api-keys", str(keys)) as server, prometheus(folder, server) as url:
            began = time.time()
            for half in range(2):
                load(server.url, args.seconds / 2, seed=half)
                if not half:
                    server.engine.kill()
                    server.until(lambda: not server.is_healthy())
                    server.until(server.is_healthy, timeout=_WAIT)
                    provoke(server)
            run("promtool", "check", "metrics", text=server.http.get("/metrics").text)
            check_rules(url)
            check_queries(url, began)
            if args.image:
                from tests.deploy.draw import draw

                draw(lambda query: samples(url, query, began), args.image)
                print(f"{args.image}: {args.image.stat().st_size / 1024:.0f} KB")


def check_files() -> None:
    """Let the programs that will read the files in deploy/ judge them."""
    compose = ("docker-compose",) if shutil.which("docker-compose") else ("docker", "compose")
    file, gpu = (str(DEPLOY / "compose" / name) for name in ("compose.yaml", "compose.gpu.yaml"))
    for files in (("--file", file), ("--file", file, "--file", gpu)):
        run("env", "GRAFANA_ADMIN_PASSWORD=secret", *compose, *files, "config", "--quiet")
    without = subprocess.run(
        [*compose, "--env-file=/dev/null", "--file", file, "config", "--quiet"], capture_output=True, text=True
    )
    assert "GRAFANA_ADMIN_PASSWORD" in without.stderr, "Compose must ask for Grafana's password"
    run("promtool", "check", "config", "--lint=all", "--lint-fatal", str(DEPLOY / "prometheus/prometheus.yml"))
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(DEPLOY / "prometheus/alerts.yml"))
    run("promtool", "test", "rules", str(DEPLOY / "prometheus/alerts_test.yml"))


def run(*command: str, text: str | None = None) -> None:
    """Run a program that must succeed, and say so. Ends the program when it fails or is missing."""
    shown = " ".join(command).replace(f"{ROOT}/", "")
    try:
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is missing; Debian and Ubuntu have it: apt install prometheus docker-compose")
    if done.returncode:
        sys.exit(f"FAILED  {shown}\n{done.stdout}")
    print(f"ok      {shown}")


@contextmanager
def prometheus(folder: Path, server: ServerProcess) -> Iterator[str]:
    """Prometheus with deploy/'s configuration, but for its targets and a second between scrapes; its URL."""
    port = free_port()
    config = read_yaml("prometheus/prometheus.yml")
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    for job, target in zip(
        config["scrape_configs"], (server.url.removeprefix("http://"), f"127.0.0.1:{port}"), strict=True
    ):
        job["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    command = ("prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/data", "--log.level=warn")
    with (folder / "prometheus.log").open("wb") as log:
        process = start([*command, f"--web.listen-address=127.0.0.1:{port}"], log)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url), _WAIT, process)
        until(lambda: len(ask(url, "query", query="up == 1")["result"]) == 2, _WAIT, process)
        yield url
    finally:
        end(process)


def load(url: str, seconds: float, seed: int) -> None:
    """Let alice send three requests a second, and bob 48 at once: more than may run, wait, or lie in the KV cache."""
    keys = [f"{'alice' * 2},rate=3,requests={int(3 * seconds)}", f"{'bob' * 2},rate=inf,requests=48"]
    lengths = ("--shared-prefix=64", "--input-len=16-128", "--output-len=32-160", "--ignore-eos")
    command = [sys.executable, "-m", "benchmarks.serve", f"--url={url}", f"--seed={seed}", *lengths]
    command += [f"--api-key={key}" for key in keys]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    print("load   ", done.stderr.partition("\n")[0])


def provoke(server: ServerProcess) -> None:
    """Make one request of each kind that fails."""
    bob = {"Authorization": f"Bearer {'bob' * 2}"}
    bodies = ({"prompt": "a", "max_tokens": -1}, {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "timeout": 0.2})
    answers = [server.http.post("/v1/completions", json=bodies[0])]
    answers += [server.http.post("/v1/completions", json=body, headers=bob) for body in bodies]
    assert [answer.status_code for answer in answers] == [401, 400, 408], answers


def answers(url: str) -> bool:
    """Whether Prometheus has started."""
    try:
        get(url, "/-/ready")
    except OSError:
        return False
    return True


def ask(url: str, path: str, **parameters: Any) -> Any:
    """The data of Prometheus' answer."""
    return json.loads(get(url, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))["data"]


def samples(url: str, query: str, began: float) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
    """What Grafana would draw: labels and (seconds since the load began, value) of each series."""
    query = query.replace("$__rate_interval", "10s").replace("$model_name", ".*")
    found = ask(url, "query_range", query=query, start=began, end=time.time(), step=1)["result"]
    return [(series["metric"], [(t - began, float(value)) for t, value in series["values"]]) for series in found]


def check_queries(url: str, began: float) -> None:
    """Print what each query of the dashboard returned; end the program if one has no number, or none above 0.

    The server itself is not restarted here, so 0 is right for the query that counts that.
    """
    missing, seen = [], set()
    for title, query in queries():
        series = [(labels, [value for _, value in points]) for labels, points in samples(url, query, began)]
        highest = max((value for _, values in series for value in values if not math.isnan(value)), default=None)
        good = highest is not None and (highest > 0 or "start_time_seconds" in query)
        missing += [] if good else [query]
        names = sorted({name for labels, values in series if any(values) for name in labels.values()} - {""})
        seen |= set(names)
        print(f"{'ok    ' if good else 'FAILED'}  {highest or 0:8.4g} at most  {title}: {', '.join(names) or 'all'}")
    missing += sorted(_PROVOKED - seen)
    if missing:
        sys.exit("no data:\n" + "\n".join(missing))


def check_rules(url: str) -> None:
    """Every rule can be evaluated, and the engine that was killed has raised its alert."""

    def fires() -> bool:
        return any(alert["labels"]["alertname"] == "DeepseekServeRestarted" for alert in ask(url, "alerts")["alerts"])

    until(fires, _WAIT, None)
    rules = [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]
    broken = [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
    if broken:
        sys.exit("FAILED  " + "\n".join(broken))
    print(f"ok      {len(rules)} rules evaluated; DeepseekServeRestarted fires")


if __name__ == "__main__":
    main()

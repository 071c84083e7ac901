"""The command with everything switched on that looks into it: logs as JSON, traces, the state, names."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.commands.child_server import free_port
from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVIL = "evil\nname\x1b[31m\u202e"
SECRET = "my diary of Tuesday"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The URL of a collector, and the spans that it was sent."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(span for r in body.resource_spans for s in r.scope_spans for span in s.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    """The log, of which every line is an object."""
    return [json.loads(line) for line in server.log.splitlines()]


def test_all_that_it_tells_of_a_life_with_a_dead_engine(flags: tuple[str, ...], tmp_path: Path) -> None:
    admin = free_port()
    more = ("--served-model-name", f"tiny,{EVIL}", "--log-format", "json", "--traces", "otlp")
    with collector() as (url, spans):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        flags = (*flags, *more, "--admin-port", str(admin), "--api-key", "sk-secret")
        with ServerProcess(tmp_path, *flags, environment=environment) as server:
            server.http.headers["Authorization"] = "Bearer sk-secret"
            headers = {"X-Request-ID": "r-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
            body = {"model": EVIL, "prompt": SECRET, "max_tokens": 4, "ignore_eos": True}
            assert server.http.post("/v1/completions", json=body, headers=headers).status_code == 200
            with server.http.stream("POST", "/v1/completions", json=body | {"max_tokens": 16000, "stream": True}) as s:
                chunks = s.iter_lines()
                next(chunks)
                state = httpx.get(f"http://127.0.0.1:{admin}/debug/state").text
                server.engine.kill()
                assert "error" in "".join(chunks)
            assert "running" in state
            for shown in (state, server.log, *psutil.Process(server.process.pid).cmdline()):
                assert SECRET not in shown
                assert "sk-secret" not in shown
            server.until(server.is_healthy)
            found = httpx.get(f"http://127.0.0.1:{admin}/debug/state", headers={"Accept": "application/json"}).json()
            assert found["engine"]["last_end"].startswith("status -9 (SIGKILL: ")
            assert found["engine"]["restarts"] == 1
            assert spans == []  # they wait for the end
            assert server.stop(signal.SIGTERM)[0] == 0
        told = lines(server)
    assert {line["process"] for line in told} == {"api", "engine"}
    answered = next(line for line in told if line.get("request_id") == "r-1")
    assert (answered["status"], answered["key"], answered["trace_id"]) == (200, "api-key", TRACE)
    assert answered["output_tokens"] == 4
    phases = [line["message"] for line in told if line["logger"] == "server.startup"]
    assert phases.count("start: reading and packing weights") == phases.count("start: warming up") == 2
    assert any("the engine died with status -9" in line["message"] for line in told)
    assert [span.name for span in spans].count("text_completion tiny") == 2
    assert {span.name for span in spans} >= {"prepare", "queue", "prefill", "decode"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_model_whose_name_steers_a_terminal_is_named_harmlessly(tmp_path: Path, form: str) -> None:
    with ServerProcess(tmp_path, "--model", str(tmp_path / EVIL), "--log-format", form, wait=False) as server:
        assert server.process.wait(timeout=60) == 2
        said = server.log
    if form == "json":
        assert "evil" in lines(server)[-1]["message"]
    assert all(character.isprintable() for character in said.replace("\n", ""))
    assert not any(line.startswith("name") for line in said.splitlines())

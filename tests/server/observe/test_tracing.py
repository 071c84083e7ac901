"""Traces: where a request's time went, in whose trace, and what never is in them. Exports harm nobody."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engine.errors import ConfigError
from engine.logs import JsonFormatter
from server.config import ServerConfig
from server.http.api_keys import ApiKeys, Caller
from server.http.request_record import RequestIdFilter
from server.observe import tracing as tracing_module
from server.observe.tracing import start_tracing
from tests.server.conftest import CHAT, COMPLETIONS, Api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from opentelemetry.sdk.trace import ReadableSpan

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "my diary of Tuesday"


class Traced:
    """An API with traces that are kept."""

    def __init__(self, api: Api, tracing: Any, exporter: InMemorySpanExporter) -> None:
        self.api, self._tracing, self._exporter = api, tracing, exporter

    def spans(self) -> list[ReadableSpan]:
        self._tracing._provider.force_flush()
        return list(self._exporter.get_finished_spans())

    def span(self) -> ReadableSpan:
        """The one span of a request."""
        [span] = [span for span in self.spans() if span.kind is SpanKind.SERVER]
        return span


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


@pytest_asyncio.fixture
async def trace(serve: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    """await trace(...) -> a Traced API."""
    made = []

    async def make(**parts: Any) -> Traced:
        exporter = InMemorySpanExporter()
        tracing = start_tracing(exporter)
        made.append(tracing)
        return Traced(await serve(tracing=tracing, **parts), tracing, exporter)

    yield make
    for tracing in made:
        await tracing.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "operation"), [(COMPLETIONS, "text_completion"), (CHAT, "chat")])
async def test_a_request_is_a_span_with_its_phases_beneath_it(
    trace: Any, path: str, operation: str, stream: bool
) -> None:
    traced = await trace()
    started = time.time_ns()
    body = {"max_tokens": 5, "temperature": 0.5, "seed": 7, "ignore_eos": True, "stream": stream}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "r-1"}
    response = await traced.api.http.post(path, json=_text(path) | body, headers=headers)
    assert response.status_code == 200
    spans, ended = traced.spans(), time.time_ns()
    assert {span.name for span in spans} == {"decode", "prefill", "prepare", "queue", f"{operation} tiny"}
    assert len(spans) == 5
    root = traced.span()
    assert (root.context.trace_id, root.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    found = dict(root.attributes)
    assert found["gen_ai.operation.name"] == operation
    assert (found["gen_ai.request.model"], found["gen_ai.request.max_tokens"]) == ("tiny", 5)
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.seed"]) == (0.5, 7)
    assert found["gen_ai.usage.output_tokens"] == 5
    assert found["gen_ai.usage.input_tokens"] > 1
    assert found["gen_ai.response.finish_reasons"] == ("length",)
    assert (found["http.route"], found["http.response.status_code"]) == (path, 200)
    assert found["http.request.header.x-request-id"] == ("r-1",)
    children = {span.name: span for span in spans if span is not root}
    order = [children[name] for name in ("prepare", "queue", "prefill", "decode")]
    assert all(child.parent.span_id == root.context.span_id for child in order)
    assert started <= root.start_time <= order[0].start_time
    assert order[-1].end_time <= root.end_time <= ended
    for before, after in itertools.pairwise(order):
        assert before.start_time <= before.end_time == after.start_time <= after.end_time
    assert SECRET not in "".join(span.to_json() for span in spans)


def _text(path: str) -> dict[str, Any]:
    return {"prompt": SECRET} if path == COMPLETIONS else {"messages": [{"role": "user", "content": SECRET}]}


GARBAGE = [
    "",
    "00",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{PARENT}-01",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01-more",
    "00-" + "a" * 20_000,
    "\u00e9\u00ff" * 100,
    f"00-{TRACE}-{PARENT}-zz",
]


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("sent", GARBAGE)
async def test_a_header_that_names_no_trace_is_as_none(
    trace: Any, serve: Any, caplog: pytest.LogCaptureFixture, is_on: bool, sent: str
) -> None:
    caplog.set_level(logging.INFO, "server.http.access")
    traced = await trace() if is_on else None
    api = traced.api if traced else await serve()
    headers = {"traceparent": sent.encode("latin-1"), "tracestate": b"\xff=,;" * 1000, "baggage": b"a=b," * 2000}
    assert (await api.http.get("/v1/models", headers=headers)).status_code == 200
    if traced:
        root = traced.span()
        assert root.parent is None
        assert (root.name, root.attributes["http.route"]) == ("GET /v1/models", "/v1/models")
        assert len(root.to_json()) < 2000
    assert TRACE not in caplog.text.lower()


async def test_two_parents_are_none(trace: Any) -> None:
    traced = await trace()
    headers = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("traceparent", f"00-{TRACE}-{PARENT}-00")]
    await traced.api.http.get("/v1/models", headers=headers)
    assert traced.span().parent is None


async def test_sampling_is_the_variables(trace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = await trace()
    not_sampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    await traced.api.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 2}, headers=not_sampled)
    assert traced.spans() == []  # parentbased_always_on, the default
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    traced = await trace()
    await traced.api.http.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert traced.spans() == []
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    traced = await trace()
    assert (await traced.api.http.get("/v1/models")).status_code == 200
    assert traced.spans() == []


async def test_refusals_are_spans_and_probes_are_not(trace: Any) -> None:
    keys = ApiKeys([Caller.of_key("sk-secret", 1.0, "laptop")])
    traced = await trace(keys=keys)
    for path in ("/health", "/metrics", "/livez"):
        await traced.api.http.get(path)
    assert traced.spans() == []
    await traced.api.http.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"})
    root = traced.span()
    assert root.attributes["error.type"] == "401"
    assert root.status.status_code is StatusCode.UNSET  # the client's fault, by the conventions for servers
    assert "sk-" not in root.to_json()


async def test_many_choices_have_few_spans(trace: Any) -> None:
    traced = await trace()
    body = {"prompt": "a", "max_tokens": 2, "n": 40, "ignore_eos": True}
    assert (await traced.api.http.post(COMPLETIONS, json=body)).status_code == 200
    names = [span.name for span in traced.spans()]
    assert names.count("decode") == 16
    assert len(names) == 2 + 3 * 16


async def test_a_trace_is_named_in_the_log_also_where_there_are_no_traces(
    serve: Any, trace: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.http.access")
    lines: list[dict[str, Any]] = []
    handler = logging.Handler()
    handler.addFilter(RequestIdFilter())
    form = JsonFormatter("api")
    handler.emit = lambda record: lines.append(json.loads(form.format(record)))  # type: ignore[method-assign]
    logging.getLogger("server.http.access").addHandler(handler)
    try:
        for api in (await serve(), (await trace()).api):
            await api.http.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    finally:
        logging.getLogger("server.http.access").removeHandler(handler)
    assert [line["trace_id"] for line in lines] == [TRACE, TRACE]
    assert "span_id" not in lines[0]
    assert len(lines[1]["span_id"]) == 16
    assert caplog.text.count(f"trace={TRACE}") == 2
    assert (lines[0]["status"], lines[0]["request"], lines[0]["key"]) == (200, "GET /v1/models", "none")


async def test_a_collector_that_is_away_or_stuck_holds_nobody_up(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setattr(tracing_module, "_FLUSH_TIMEOUT", 0.2)
    with socket.socket() as stuck:  # it accepts, and never answers
        stuck.bind(("127.0.0.1", 0))
        stuck.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{stuck.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
        tracing = start_tracing()
        api = await serve(tracing=tracing)
        async with asyncio.timeout(20):
            answers = [await api.http.get("/v1/models") for _ in range(50)]
        assert {answer.status_code for answer in answers} == {200}
        started = time.monotonic()
        await tracing.close()
        assert time.monotonic() - started < 1.5


async def test_what_is_left_is_sent_at_the_end(trace: Any) -> None:
    class Slow(InMemorySpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            time.sleep(0.1)
            return super().export(spans)

    exporter = Slow()
    tracing = start_tracing(exporter)
    record = type("Record", (), {"started": time.monotonic(), "trace": None})()
    tracing.begin({"method": "GET", "path": "/x", "headers": []}, record)
    record.trace._span.end()
    await tracing.close()
    assert len(exporter.get_finished_spans()) == 1


@pytest.mark.parametrize("protocol", ["http/json", "grpc"])
def test_a_protocol_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match=protocol):
        start_tracing()


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"deepseek-serve\[otel\]"):
        start_tracing()


async def test_fastapi_tells_nobody_of_bodies(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own telemetry, which has prompts in it, cannot be switched on from outside."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    app = (await serve()).app
    settings = getattr(app, "_telemetry", None)  # older versions have none
    assert settings is None or not any(settings[name] for name in ("tracing", "metrics", "logs", "auto_configure"))


def test_the_service_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def name() -> Any:
        tracing = start_tracing(InMemorySpanExporter())
        tracing._provider.shutdown()
        return tracing._provider.resource.attributes["service.name"]

    assert name() == "deepseek-serve"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-eu")
    assert name() == "chat-eu"
    assert ServerConfig().traces == "off"
